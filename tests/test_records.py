"""The strict parser, the files it is given, and the columns that it becomes."""

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradelora.errors import BadData
from gradelora.records import collect_data_files, fast, parse, stream
from gradelora.records.columns import PARSE_CODES, to_columns
from gradelora.records.read import read_files
from gradelora.records.schema import ITEM_FIELDS

FAULTS = {
    None,
    "empty",
    "not_utf8",
    "bad_gzip",
    "bad_json",
    "root_not_list",
    "duplicate_key",
    "non_finite",
    "too_large",
}
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, data: bytes, max_bytes: int = 2**20) -> list:
    """All records of a file with these bytes."""
    path.write_bytes(data)
    return [record for batch in parse.batches(path, max_bytes) for record in batch]


def code_of(path: Path, data: bytes) -> str | None:
    """The fault's code; None where the file can be read."""
    try:
        read(path, data)
    except stream.Fault as found:
        return found.code
    return None


def fault(path: Path, data: bytes, max_bytes: int = 2**20) -> stream.Fault:
    with pytest.raises(stream.Fault) as caught:
        read(path, data, max_bytes)
    return caught.value


# -- the parser ------------------------------------------------------------------------------


@quick
@given(data=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_no_bytes_crash_the_parser_with_anything_but_a_coded_fault(tmp_path, data, suffix):
    assert code_of(tmp_path / f"any{suffix}", data) in FAULTS


@quick
@given(text=st.text(alphabet='[]{}":,\\ \n0123456789.eE+-tfnulNaI\ud800é\x00', max_size=60), lines=st.booleans())
def test_no_near_json_text_crashes_the_parser_with_anything_but_a_coded_fault(tmp_path, text, lines):
    data = text.encode("utf-8", "surrogatepass")
    assert code_of(tmp_path / ("any.jsonl" if lines else "any.json"), data) in FAULTS


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec=None), max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@quick
@given(
    texts=st.lists(
        st.sampled_from(['{"a": 1}', '{"a": "}, {\\"a\\""}', '{"a": [{"a": 2}, {"a": 3}]}', "7"]), max_size=12
    ),
    after=st.sampled_from(["]", "] ", '], {"a": 1}', ', {"a": 1, "a": 2}]', ', {"a"]', ""]),
    chunk=st.sampled_from([20, 60, 10_000]),
)
def test_elements_read_many_at_once_are_those_read_one_by_one(tmp_path, texts, after, chunk):
    data = ("[" + ", ".join(texts) + after).encode()
    found = []
    for at_once in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "CHUNK_CHARS", chunk)
            if not at_once:
                patch.setattr(parse, "_many", lambda text, end: ([], end))
            try:
                found.append(read(tmp_path / "a.json", data))
            except stream.Fault as fault:
                found.append(fault.args)
    assert found[0] == found[1]


# Objects with keys that are often the same, also when spelt otherwise, and with odd gaps.
key_texts = st.sampled_from(['"a"', '"\\u0061"', '"a\\\\"', '"a\\":"', '"rubric_alignment"', '"b :"'])
gaps = st.sampled_from(["", "", "", " ", "\n", "\t "])
value_texts = st.recursive(
    st.sampled_from(
        [
            '"x"',
            '"\\": "',
            '" :"',
            "1",
            "-0",
            "1e5",
            "1e999",
            "NaN",
            "9" * 400,
            "18446744073709551616",
            '"\\ud800"',
            '"é"',
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{', '.join(values)}]")
        | st.lists(st.tuples(key_texts, gaps, gaps, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{k}{g}:{h}{v}" for k, g, h, v in pairs) + "}"
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(text=value_texts)
def test_what_is_read_fast_is_what_the_strict_scanner_reads(text):
    if (value := fast.read(text.encode())) is not None:
        strict, end = parse._scan(text, 0)
        assert end == len(text)
        # A whole number beyond 64 bits is a float's: every number becomes one.
        assert as_floats(value) == as_floats(strict)


def as_floats(value):
    if isinstance(value, dict):
        return {key: as_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) else value


def test_a_duplicate_key_and_every_odd_number_is_left_to_the_strict_scanner():
    item = '{"score": 1, "answer": "x"}'
    whole = f'[{{"score": 1, "rubric_alignment": [{item}, {item}]}}]'
    assert fast.read(whole.encode()) == json.loads(whole)
    for odd in ('"score": 2', '"score" : 2', '"\\u0073core":2', '"other": NaN', '"other": 1e999', '"other": "\\ud800"'):
        assert fast.read(whole.replace('"x"', f'"x", {odd}').encode()) is None, odd


def test_whole_elements_of_a_chunk_are_read_at_once():
    text = '{"a": 1}, {"a": 2}, {"a": 3}, {"a": "cut o'
    assert parse._many(text, 8) == ([{"a": 2}, {"a": 3}], text.index(', {"a": "cut'))


@quick
@given(records=st.lists(json_values, max_size=5), indent=st.sampled_from([None, 1]), chunk=st.integers(1, 40))
def test_what_is_valid_is_read_as_the_standard_library_reads_it_in_chunks_of_any_size(tmp_path, records, indent, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_CHARS", chunk)
        assert read(tmp_path / "a.json", json.dumps(records, indent=indent).encode()) == records
        assert read(tmp_path / "b.json.gz", gzip.compress(json.dumps(records, indent=indent).encode())) == records
    if records:
        lines = "\n".join(json.dumps(record) for record in records)
        assert read(tmp_path / "c.jsonl", lines.encode()) == records


row_values = st.one_of(json_values, st.just("\ud800"), st.just(True), st.just("3"), st.integers(0, 5))
rows = st.dictionaries(st.sampled_from([*ITEM_FIELDS, "other"]), row_values, max_size=8)
record_rows = st.fixed_dictionaries(
    {},
    optional={
        "score": row_values,
        "max_score": row_values,
        "normalized_score": row_values,
        "rubric_alignment": st.lists(rows | json_values, max_size=3) | json_values,
        "feedback": row_values,
    },
)


@quick
@given(records=st.lists(record_rows | json_values, max_size=4))
def test_any_values_become_columns_of_one_type_with_every_misfit_flagged(records):
    outer, inner = to_columns(records, 7)
    assert outer.table.num_rows == len(records)
    for side in (outer, inner):
        assert set(side.flags) == set(PARSE_CODES)
        side.table.validate(full=True)
    scores = inner.table["score"].to_pylist()
    bad = inner.flags["type"] | inner.flags["missing_field"]
    assert all(bad[row] for row, score in enumerate(scores) if score is None or math.isnan(score))


def test_a_batch_checked_value_by_value_gives_the_same_columns_as_one_converted_whole():
    good = {"question": "q", "answer": "a", "score": 1, "max_score": 2}
    odd = {**good, "answer": 7}
    record = {"score": 1, "max_score": 2, "normalized_score": 0.5}
    whole = to_columns([{**record, "rubric_alignment": [good]}], 0)[1]
    mixed = to_columns([{**record, "rubric_alignment": [good, odd]}], 0)[1]
    assert mixed.table.slice(0, 1).to_pylist() == whole.table.to_pylist()
    assert mixed.flags["type"].tolist() == [False, True]
    assert mixed.reasons == {(1, "type"): "answer must be text, found a number"}


def test_a_fault_names_line_and_column_also_far_behind_the_first_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_CHARS", 64)
    text = "[\n" + ",\n".join(['{"feedback": "é"}'] * 100) + ',\n{"score": 1e999}]'
    found = fault(tmp_path / "a.json", text.encode())
    assert (found.code, found.line, found.column) == ("non_finite", 102, 11)


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_hopeless_nesting_is_a_fault_at_its_deepest_bracket(tmp_path, depth):
    found = fault(tmp_path / "a.json", b"[" * depth + b"]" * depth)
    assert (found.code, found.column) == ("bad_json", depth)


def test_memory_is_bounded_when_a_small_gzip_unpacks_to_very_much(tmp_path):
    packed = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    assert len(packed) < 2**17
    assert fault(tmp_path / "a.json.gz", packed, 2**17).code == "too_large"
    assert fault(tmp_path / "a.jsonl.gz", gzip.compress(b" " * 5_000_000), 2**17).code == "too_large"


def test_a_fault_never_repeats_the_text_around_it(tmp_path):
    for data in (b'[{"secret": 1, "secret": 2}]', b'["secret" "secret"]', b'["secret\x01"]', b'{"secret": 1}'):
        assert "secret" not in fault(tmp_path / "a.json", data).detail


# -- the files -------------------------------------------------------------------------------


def test_files_are_found_by_globs_sorted_named_from_their_common_folder_and_hashed(tmp_path, monkeypatch):
    for name in ("b/2.json", "b/deep/1.jsonl", "a/3.json.gz", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    data = collect_data_files(("b/**/*.json*", "a/3.json.gz", "b/2.json"))
    assert data.path == tmp_path
    assert [f.name for f in data.files] == ["a/3.json.gz", "b/2.json", "b/deep/1.jsonl"]
    before = data.digest
    (tmp_path / "b/2.json").touch()
    assert collect_data_files(("b/**/*.json*", "a/3.json.gz")).digest == before
    (tmp_path / "b/2.json").write_text("c/2.json")
    assert collect_data_files(("b/**/*.json*", "a/3.json.gz")).digest != before


def test_a_moved_folder_has_the_same_identity(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.json").write_text("[]")
    here = collect_data_files((str(tmp_path / "x/*.json"),))
    (tmp_path / "x").rename(tmp_path / "y")
    assert collect_data_files((str(tmp_path / "y/*.json"),)).digest == here.digest


@pytest.mark.parametrize("pattern", ["none.json", "*.jsonl", "table.csv", "folder"])
def test_a_pattern_without_a_data_file_is_refused_by_its_name(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("score")
    (tmp_path / "folder").mkdir()
    (tmp_path / "good.json").write_text("[]")
    with pytest.raises(BadData, match=pattern.replace("*", r"\*")):
        collect_data_files(("good.json", pattern))


def test_a_file_that_changed_after_it_was_collected_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    data = collect_data_files((str(path),))
    path.touch()
    read_files(data, 2**20)
    path.write_text("[ ]")
    with pytest.raises(BadData, match="changed since"):
        read_files(data, 2**20)


def test_rows_of_many_batches_and_files_keep_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(parse, "BATCH_RECORDS", 3)
    for name in ("a", "b"):
        records = [
            {"score": 1, "max_score": 2, "normalized_score": 0.5, "rubric_alignment": [{"answer": f"{name}{n}"}] * n}
            for n in range(5)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    tables = read_files(collect_data_files((str(tmp_path / "*.json"),)), 2**20)
    assert tables.records.table["record_index"].to_pylist() == [*range(5), *range(5)]
    items = tables.items.table.to_pylist()
    for item in items:
        assert item["answer"] == f"{'ab'[item['file']]}{item['record_index']}"
        assert item["record_row"] == item["file"] * 5 + item["record_index"]
    assert [i["item_index"] for i in items if i["file"] == 1 and i["record_index"] == 4] == [0, 1, 2, 3]
    assert isinstance(tables.items.table["question"].type, pa.DictionaryType)
