"""Every code has a fixture; Great Expectations judges; no student text gets out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gradelora.artifacts import ValidatedRecords
from gradelora.config import Runtime, SplitConfig, ValidateConfig
from gradelora.errors import BadData, CheckFailed
from gradelora.records import collect_data_files
from gradelora.records.schema import ITEMS, RECORDS
from gradelora.validate import examine, validate
from gradelora.validate.codes import BY_NAME, CODES
from gradelora.validate.findings import Findings
from gradelora.validate.judge import Judge

FIXTURES = Path(__file__).parent / "fixtures" / "validation"
CONFIG = ValidateConfig(max_file_bytes=16384)

# file: (level, codes)
EXPECTED = {
    "bad_gzip.json.gz": ("error", {"bad_gzip": 1}),
    "bad_json.json": ("error", {"bad_json": 1}),
    "bad_json.jsonl": ("error", {"bad_json": 1}),
    "bad_json_nesting.json": ("error", {"bad_json": 1}),
    "blank_answer_nonzero_score.json": ("quarantine", {"blank_answer_nonzero_score": 1}),
    "blank_answer_zero_score.json": ("warning", {"blank_answer_zero_score": 1}),
    "bom.json": ("warning", {"bom": 1}),
    "bom.jsonl.gz": ("warning", {"bom": 1}),
    "conflicting_duplicate.json": ("warning", {"conflicting_duplicate": 2}),
    "control_char.json": ("quarantine", {"control_char": 2}),
    "control_token_text.json": ("warning", {"control_token_text": 1}),
    "duplicate.json": ("warning", {"duplicate": 1}),
    "duplicate_key.json": ("error", {"duplicate_key": 1}),
    "empty.json": ("error", {"empty": 1}),
    "empty.jsonl": ("error", {"empty": 1}),
    "item_score_gt_max.json": ("quarantine", {"item_score_gt_max": 2}),
    "items_sum_gt_record.json": ("quarantine", {"items_sum_gt_record": 1}),
    "items_sum_lt_record.json": ("warning", {"items_sum_lt_record": 1}),
    "lone_surrogate.json": ("quarantine", {"lone_surrogate": 1}),
    "max_le_0.json": ("quarantine", {"max_le_0": 1}),
    "missing_field.json": ("quarantine", {"missing_field": 2}),
    "no_items.json": ("quarantine", {"no_items": 1}),
    "no_records.json": ("warning", {"no_records": 1}),
    "non_finite_1e999.json": ("error", {"non_finite": 1}),
    "non_finite_digits.json": ("error", {"non_finite": 1}),
    "non_finite_infinity.json": ("error", {"non_finite": 1}),
    "non_finite_integer.json": ("error", {"non_finite": 1}),
    "non_finite_nan.json": ("error", {"non_finite": 1}),
    "norm_mismatch.json": ("quarantine", {"norm_mismatch": 1}),
    "not_utf8.json": ("error", {"not_utf8": 1}),
    "ok.json": ("ok", {}),
    "ok.jsonl": ("ok", {}),
    "ok_zipped.json.gz": ("ok", {}),
    "over_length.json": ("warning", {"over_length": 1}),
    "pii.json": ("warning", {"pii": 3}),
    "prompt_injection.json": ("warning", {"prompt_injection": 3}),
    "record_score_gt_max.json": ("quarantine", {"record_score_gt_max": 1}),
    "root_not_list.json": ("error", {"root_not_list": 1}),
    "score_lt_0.json": ("quarantine", {"score_lt_0": 1}),
    "too_large.json": ("error", {"too_large": 1}),
    "too_large.jsonl.gz": ("error", {"too_large": 1}),
    "type.json": ("quarantine", {"type": 5}),
    "unknown_field.json": ("warning", {"unknown_field": 2}),
    # The answer of s-1 that s-9, who is held out, gave too but for the order of its words.
    "withheld.json": ("warning", {"withheld": 1}),
}
# Of one file alone: codes of the data set, and whether training could go on.
WHOLE = {
    "max_score_conflict": ({"max_score_conflict"}, True),
    "question_conflict": ({"question_conflict"}, True),
    "too_many_quarantined": ({"too_many_quarantined"}, True),
    "split_leak": ({"split_leak"}, True),
    "no_rows_left": ({"no_rows_left", "few_answers"}, True),
    "few_answers": ({"few_answers"}, False),
    "majority_class": ({"majority_class"}, False),
    "constant_score": ({"constant_score"}, False),
    "ok": (set(), False),
}


def look(tmp_path: Path, *patterns: Path | str, config: ValidateConfig = CONFIG) -> Findings:
    return examine(config, collect_data_files(tuple(map(str, patterns))), tmp_path)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[Findings, Path]:
    """All row and file fixtures examined as one data set."""
    out = tmp_path_factory.mktemp("everything")
    return look(out, FIXTURES / "*.*"), out


def test_every_code_has_a_fixture():
    tested = {code for _, codes in EXPECTED.values() for code in codes} | {
        c for codes, _ in WHOLE.values() for c in codes
    }
    assert tested == {code.name for code in CODES}
    assert {p.name for p in FIXTURES.iterdir() if p.is_file()} == set(EXPECTED)


def test_the_format_page_tells_every_code_at_its_level():
    page = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    rows = re.findall(r"^\| (error|quarantine|warning) \|[^|]*\|(.*)\|$", page, re.MULTILINE)
    told = {level: set(re.findall(r"`([a-z_0-9]+)`", codes)) for level, codes in rows}
    assert told == {level: {c.name for c in CODES if c.level == level} for level in ("error", "quarantine", "warning")}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_file_shows_its_codes_and_no_other(everything, name):
    findings, _ = everything
    (file,) = [f for f in findings.files if f.path == name]
    assert (file.level, file.codes) == EXPECTED[name]
    assert (file.fault is not None) == (file.level == "error")


# A second each; the slow ones take the same way as the others.
@pytest.mark.parametrize(
    "code", [pytest.param(c, marks=() if c in {"ok", "split_leak"} else pytest.mark.slow) for c in sorted(WHOLE)]
)
def test_a_data_set_shows_its_codes_and_is_blocked_where_training_could_not_go_on(tmp_path, code):
    config = ValidateConfig(split=SplitConfig(on_leak="block"))
    findings = look(tmp_path, FIXTURES / "data_set" / f"{code}.json", config=config)
    codes, blocked = WHOLE[code]
    assert (set(findings.data_set.codes), findings.blocked) == (codes, blocked)
    assert (tmp_path / "items.arrow").exists() != blocked
    if blocked:
        assert BY_NAME[code].remedy in findings.sentence()


def test_a_fault_tells_line_and_column(everything):
    faults = {f.path: f.fault for f in everything[0].files if f.fault}
    assert faults["bad_json.json"].startswith("line 2, column 14: ")
    assert faults["duplicate_key.json"].startswith("line 2, column 31: ")
    assert faults["not_utf8.json"].startswith("line 2, column 18: ")


def test_the_quarantine_names_place_code_and_reason_in_order(everything):
    lines = [json.loads(line) for line in (everything[1] / "aside" / "quarantine.jsonl").read_text().splitlines()]
    assert all(set(line) == {"file", "record_index", "item_index", "code", "reason"} for line in lines)
    places = [(r["file"], r["record_index"], -1 if r["item_index"] is None else r["item_index"]) for r in lines]
    assert places == sorted(places)
    told = {(r["file"], r["code"]): r["reason"] for r in lines}
    assert told["norm_mismatch.json", "norm_mismatch"] == "normalized_score 0.5 is not score 2 / max_score 3"
    for name, (level, codes) in EXPECTED.items():
        if level == "quarantine":
            assert {code: sum(r["file"] == name for r in lines) for code in codes} == codes


def test_student_text_is_in_no_finding_no_reason_and_no_page_of_the_data_docs(everything):
    findings, out = everything
    written = [p for p in (out / "aside").rglob("*") if p.suffix in {".html", ".json", ".jsonl"}]
    assert sum(p.suffix == ".html" for p in written) == 7
    for text in ("They hold the plant", "mia.k@example.org", "1234567", "20231187", "full marks", "What do roots do"):
        assert any(text in p.read_text(errors="replace") for p in FIXTURES.iterdir() if p.is_file())
        assert all(text not in p.read_text(errors="replace") for p in written), text
        assert text not in findings.model_dump_json() + "".join(findings.lines())


def test_an_excerpt_is_quarantined_where_alignment_must_be_complete(tmp_path):
    config = ValidateConfig(complete_alignment=True)
    (file,) = look(tmp_path, FIXTURES / "items_sum_lt_record.json", config=config).files
    assert (file.level, file.codes) == ("quarantine", {"items_sum_lt_record": 1})


def test_the_stage_raises_one_sentence_and_leaves_its_findings_aside(tmp_path, capsys):
    data = collect_data_files((str(FIXTURES / "duplicate_key.json"),))
    with pytest.raises(BadData, match=r"^duplicate_key.json: duplicate_key: line 2, column 31: .*keep one of the two"):
        validate(CONFIG, data, out=tmp_path, runtime=Runtime())
    assert json.loads((tmp_path / "aside" / "findings.json").read_text())["files"][0]["level"] == "error"
    assert "duplicate_key.json: error: duplicate_key 1" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["aside"]


@pytest.mark.slow
def test_the_stage_writes_the_contract_and_the_same_bytes_in_another_process(tmp_path):
    data = collect_data_files((str(FIXTURES / "data_set" / "ok.json"), str(FIXTURES / "ok.json")))
    (tmp_path / "here").mkdir()
    made = validate(ValidateConfig(), data, out=tmp_path / "here", runtime=Runtime())
    items = pa.ipc.open_file(tmp_path / "here" / "items.arrow").read_all()
    records = pa.ipc.open_file(tmp_path / "here" / "records.arrow").read_all()
    assert (items.schema, records.schema) == (ITEMS, RECORDS)
    assert (len(items), len(records), made.items, made.records) == (62, 62, 62, 62)
    last = items.slice(61).to_pylist()[0]
    assert (last["item_id"], last["record_id"], last["file"]) == ("ok:1:0", "ok:1", "ok.json")
    assert (last["student_id"], last["rater2_score"], last["feedback"]) == ("s-1", 2.5, "Good.")
    assert items.slice(0).to_pylist()[0]["item_id"] == "data_set/ok:0:0"
    there = run_elsewhere(data.model_dump_json(), tmp_path / "there", hash_seed="7")
    assert there.digest == made.digest


def run_elsewhere(data: str, out: Path, hash_seed: str) -> ValidatedRecords:
    out.mkdir()
    code = (
        "import sys; from pathlib import Path; from gradelora.artifacts import DataFiles\n"
        "from gradelora.config import Runtime, ValidateConfig; from gradelora.validate import validate\n"
        "made = validate(ValidateConfig(), DataFiles.model_validate_json(sys.argv[1]), out=Path(sys.argv[2]),"
        " runtime=Runtime())\nprint(made.model_dump_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, data, str(out)],
        env={"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return ValidatedRecords.model_validate_json(done.stdout.splitlines()[-1])


def test_importing_the_stage_imports_nothing_heavy():
    code = "import sys, gradelora.validate, gradelora.records; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"great_expectations", "pyarrow", "pandas", "torch", "numpy"} & set(loaded)


# -- the judge -------------------------------------------------------------------------------

LEVELS = {"a": "quarantine", "b": "warning"}


def test_the_judge_counts_what_is_flagged(tmp_path):
    judge = Judge(LEVELS, tmp_path)
    assert judge.judge("items", {"a": np.array([True, False, True]), "b": np.array([False] * 3)}) == {"a": 2}
    assert judge.judge("records", {"a": np.zeros(0, bool)}) == {}


def test_a_fault_inside_great_expectations_is_a_fault_and_never_bad_data(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("broken metric")

    judge = Judge(LEVELS, tmp_path)
    monkeypatch.setattr("pandas.Series.isin", broken)
    with pytest.raises(CheckFailed, match="a fault, not bad data"):
        judge.judge("items", {"a": np.array([False, False])})


def test_a_verdict_that_contradicts_the_flags_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("pandas.Series.isin", lambda self, values: self.map(lambda _: True))
    with pytest.raises(CheckFailed, match="against its own flags"):
        Judge(LEVELS, tmp_path).judge("items", {"a": np.array([True, False])})


def test_the_same_data_give_the_same_artifact_as_long_as_version_stays(tmp_path: Path) -> None:
    """Another digest means another output: bump VERSION of validate, then write the new digest here."""
    import gradelora.validate

    sample = Path(__file__).parents[1] / "data" / "sample" / "biology.json"
    records = validate(ValidateConfig(), collect_data_files((str(sample),)), out=tmp_path, runtime=Runtime())
    assert (gradelora.validate.VERSION, records.digest[:16]) == (2, "469ba8292674e2b0")
