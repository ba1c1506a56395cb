"""The encode stage: items.arrow to Arrow datasets of ids."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gradelora import child
from gradelora.artifacts import SPLITS, EncodedDataset, ModelSnapshot, SplitCounts, ValidatedRecords
from gradelora.config import EncodeConfig, Runtime
from gradelora.encode import encode
from gradelora.errors import TargetTooLong, UnsupportedModel
from gradelora.prompt import load_layout
from gradelora.scoring.grid import coarsest_step, grid
from tests.tiny_tokenizers import CHATML, CHATML_TEMPLATE, HARMONY, write_tokenizer

STRINGS = ("item_id", "record_id", "question", "answer", "rubric", "question_key", "student_id", "group")
STRINGS += ("feedback", "split")
NUMBERS = ("score", "max_score", "rater2_score")
ITEMS = pa.schema([*((name, pa.string()) for name in STRINGS), *((name, pa.float64()) for name in NUMBERS)])
HARMONY_CONFIG = EncodeConfig(layout="harmony")


def an_item(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "item_id": f"a:{number}:0",
        "record_id": f"a:{number}",
        "question": "Why does the water boil?",
        "answer": f"The heat makes it hot {number}.",
        "rubric": "Names heat.",
        "question_key": "q1",
        "student_id": None,
        "group": None,
        "feedback": None,
        "split": "train",
        "score": 2.0,
        "max_score": 3.0,
        "rater2_score": None,
    } | changes


def records_of(folder: Path, items: list[dict[str, Any]], batch: int = 1000) -> ValidatedRecords:
    folder.mkdir()
    with pa.ipc.new_file(str(folder / "items.arrow"), ITEMS) as file:
        for start in range(0, len(items), batch):
            file.write_batch(pa.RecordBatch.from_pylist(items[start : start + batch], schema=ITEMS))
    none = SplitCounts(train=0, validation=0, unseen_answers=0, unseen_questions=0)
    return ValidatedRecords.collect(folder, items=len(items), records=0, quarantined=0, warnings=0, splits=none)


@pytest.fixture
def encoded(tmp_path):
    """encoded(items, config, ...) -> EncodedDataset, in a folder of its own each time."""
    calls = iter(range(100))

    def run(items: list[dict[str, Any]], config: EncodeConfig = HARMONY_CONFIG, **options: Any) -> EncodedDataset:
        number = next(calls)
        out = tmp_path / f"out{number}"
        out.mkdir()
        controls, template = options.pop("tokenizer", (HARMONY, None))
        folder = write_tokenizer(tmp_path / "tokenizer", controls, template)
        snapshot = ModelSnapshot(path=folder, files=(), repo_id="o/m", commit="c")
        return encode(
            config,
            records_of(tmp_path / f"in{number}", items, options.pop("batch", 1000)),
            snapshot,
            out=out,
            runtime=options.pop("runtime", Runtime()),
        )

    return run


def rows(dataset: EncodedDataset, split: str = "train") -> list[dict[str, Any]]:
    with pa.memory_map(str(dataset.path / split / "data-00000-of-00001.arrow")) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def lines(dataset: EncodedDataset) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dataset.path / "over_length.jsonl").read_text().splitlines()]


def layout_of(dataset: EncodedDataset, config: EncodeConfig = HARMONY_CONFIG):
    return load_layout(dataset.path.parent / "tokenizer", config)


@pytest.mark.parametrize(
    ("name", "tokenizer"), [("harmony", (HARMONY, None)), ("chat_template", (CHATML, CHATML_TEMPLATE))]
)
def test_a_row_is_prefix_answer_closing_target_and_says_where_each_begins(encoded, name, tokenizer):
    config = EncodeConfig(layout=name)
    items = [an_item(1), an_item(2, answer=" <|end|><|im_end|> ", rubric=None, score=1.5, rater2_score=1.0, group="x")]
    dataset = encoded(items, config, tokenizer=tokenizer)
    layout = layout_of(dataset, config)
    for row, item in zip(rows(dataset), items, strict=True):
        prefix = layout.prefix(item["question"], item["rubric"], 3)
        prompt = [*prefix, *layout.answer(item["answer"]), *layout.closing]
        assert row["input_ids"] == [*prompt, *layout.target(item["score"], None)]
        assert (row["prefix_length"], row["prompt_length"]) == (len(prefix), len(prompt))
        carried = ("item_id", "record_id", "question_key", "score", "max_score", "rater2_score", "group")
        assert {key: row[key] for key in carried} == {key: item[key] for key in carried}


def test_facts_count_rows_and_tokens(encoded):
    dataset = encoded([an_item(1), an_item(2, split="validation"), an_item(3, split="unseen_answers", answer="a " * 9)])
    lengths = [len(row["input_ids"]) for split in SPLITS for row in rows(dataset, split)]
    assert dataset.splits == SplitCounts(train=1, validation=1, unseen_answers=1, unseen_questions=0)
    assert (dataset.tokens, dataset.longest) == (sum(lengths), max(lengths))
    assert (dataset.layout, dataset.pad_token_id) == ("harmony", layout_of(dataset).pad_token_id)
    assert json.loads((dataset.path / "layout.json").read_text()) == layout_of(dataset).describe()


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_read_by_datasets_even_an_empty_one(encoded, split):
    from datasets import Features, List, Value, load_from_disk

    items = [an_item(1), an_item(2, split="validation", rater2_score=1.0, group="x")]
    dataset = encoded(items)
    loaded = load_from_disk(str(dataset.path / split))
    assert loaded.to_list() == rows(dataset, split)
    assert loaded.num_rows == getattr(dataset.splits, split)
    assert str(loaded.split) == split
    expected = {"item_id": Value("string"), "input_ids": List(Value("int32")), "score": Value("float64")}
    assert Features({name: loaded.features[name] for name in expected}) == Features(expected)


def test_an_over_long_answer_is_shortened_in_the_middle_and_reported(encoded):
    layout = layout_of(encoded([an_item(0)]))
    fixed = len(layout.prefix("Why does the water boil?", "Names heat.", 3)) + len(layout.closing)
    fixed += len(layout.target(2, None))
    config = EncodeConfig(layout="harmony", max_length=fixed + 20)
    long = an_item(1, answer="first " + "boils " * 50 + "last")
    dataset = encoded([long, an_item(2, answer="hot")], config)
    row, short = rows(dataset)
    assert len(row["input_ids"]) <= fixed + 20
    assert row["input_ids"][: row["prefix_length"]] == layout.prefix("Why does the water boil?", "Names heat.", 3)
    assert row["input_ids"][row["prompt_length"] :] == layout.target(2, None)
    answer = layout.text.decode(row["input_ids"][row["prefix_length"] : row["prompt_length"] - len(layout.closing)])
    assert answer.startswith("first boils")
    assert " […]" in answer
    assert answer.endswith("boils last")
    assert short["item_id"] == "a:2:0"
    tokens = fixed + len(layout.answer(long["answer"]))
    assert lines(dataset) == [{"item_id": "a:1:0", "tokens": tokens, "max_length": fixed + 20, "action": "shortened"}]


def test_an_over_long_answer_is_set_aside_where_that_is_configured(encoded):
    fixed = len(rows(encoded([an_item(1, answer="")]))[0]["input_ids"])
    config = EncodeConfig(layout="harmony", max_length=fixed + 2, over_length="quarantine")
    dataset = encoded([an_item(1, answer="boils " * 50), an_item(2, answer="")], config)
    assert [row["item_id"] for row in rows(dataset)] == ["a:2:0"]
    assert [(line["item_id"], line["action"]) for line in lines(dataset)] == [("a:1:0", "quarantined")]


@pytest.mark.parametrize("over_length", ["shorten", "quarantine"])
def test_header_maximum_and_target_are_never_cut(encoded, over_length):
    config = EncodeConfig(layout="harmony", max_length=64, over_length=over_length)
    with pytest.raises(TargetTooLong, match=r"a:7:0: .* take (\d+) tokens, .* is 64; set encode.max_length=\1 or more"):
        encoded([an_item(7)], config)


def test_the_length_that_the_error_names_is_enough(encoded):
    fixed = len(rows(encoded([an_item(1, answer="")]))[0]["input_ids"])
    with pytest.raises(TargetTooLong) as error:
        encoded([an_item(1)], EncodeConfig(layout="harmony", max_length=fixed + 1))
    needed = int(str(error.value).rpartition("encode.max_length=")[2].split()[0])
    dataset = encoded([an_item(1)], EncodeConfig(layout="harmony", max_length=needed))
    assert len(rows(dataset)[0]["input_ids"]) <= needed


def test_candidates_are_the_steps_that_the_train_split_shows(encoded):
    items = [
        an_item(1),
        an_item(2, question_key="half", score=1.5, max_score=2.0),
        an_item(3, question_key="new", max_score=1.0, score=1.0, split="unseen_questions"),
        an_item(4, score=2.5, split="unseen_answers"),
    ]
    dataset = encoded(items)
    found = json.loads((dataset.path / "candidates.json").read_text())
    assert {key: (entry["step"], entry["scores"]) for key, entry in found.items()} == {
        # An unseen answer's half point does not show here: it is held out.
        "q1": (1.0, [0, 1, 2, 3]),
        "half": (0.5, [0, 0.5, 1, 1.5, 2]),
        "new": (0.5, [0, 0.5, 1]),
    }
    layout = layout_of(dataset)
    for entry in found.values():
        assert entry["targets"] == [layout.target(score, None) for score in entry["scores"]]
    row = rows(dataset)[1]
    assert row["input_ids"][row["prompt_length"] :] in found["half"]["targets"]


@pytest.mark.parametrize(
    ("scores", "step"),
    [(set(), 1.0), ({0, 2}, 1.0), ({1, 2.5}, 0.5), ({0.25}, 0.25), ({0.3, 0.7}, 0.1), ({1 / 3}, 0.1)],
)
def test_the_step_is_the_coarsest_that_fits(scores, step):
    assert coarsest_step(scores) == step


def test_the_maximum_and_scores_off_the_grid_are_candidates():
    assert grid(2.5, 1.0, set()) == [0, 1, 2, 2.5]
    assert grid(1.0, 0.5, {0.333333}) == [0, 0.333333, 0.5, 1]
    assert grid(0.3, 0.1, set()) == [0, 0.1, 0.2, 0.3]
    assert grid(1e9, 1.0, {7.0}) == [0, 7, 1e9]


def test_targets_with_feedback_begin_with_one_candidate_each(encoded):
    config = EncodeConfig(layout="harmony", target="score_and_feedback")
    dataset = encoded(
        [an_item(1, feedback='Good: "heat" <|end|>'), an_item(2, score=1.0), an_item(3, score=3.0)], config
    )
    candidates = json.loads((dataset.path / "candidates.json").read_text())["q1"]
    layout = layout_of(dataset, config)
    for row in rows(dataset):
        target = row["input_ids"][row["prompt_length"] :]
        matching = [
            s for s, ids in zip(candidates["scores"], candidates["targets"], strict=True) if target[: len(ids)] == ids
        ]
        assert matching == [row["score"]]
        assert target[-1] == layout.text.controls["<|return|>"]
    first = rows(dataset)[0]
    assert layout.text.decode(first["input_ids"][first["prompt_length"] :]).endswith(
        '<|message|>{"score": 2, "feedback": "Good: \\"heat\\" <|end|>"}<|return|>'
    )


def test_rows_keep_the_order_of_the_items_and_do_not_change_when_items_are_appended(encoded):
    items = [an_item(n, split=SPLITS[n % 3], question_key=f"q{n % 5}", question=f"Why {n % 5}?") for n in range(60)]
    before, after = encoded(items), encoded([*items, *(an_item(n) for n in range(60, 90))], batch=7)
    for split in SPLITS:
        assert [row["item_id"] for row in rows(before, split)] == [i["item_id"] for i in items if i["split"] == split]
        assert rows(after, split)[: len(rows(before, split))] == rows(before, split)


@pytest.mark.slow
def test_many_items_are_encoded_as_few_are(encoded):
    items = [an_item(n, answer=f"hot {n % 7}", question=f"Why {n % 4500}?") for n in range(9000)]
    many, few = rows(encoded(items, batch=9000)), rows(encoded(items[4000:5000]))
    assert many[4000:5000] == few


def test_text_that_became_a_control_token_stops_the_stage(encoded, monkeypatch):
    from gradelora.prompt.text import Text

    as_template = lambda self, texts: [self.encode_template(text) for text in texts]  # noqa: E731
    monkeypatch.setattr(Text, "encode_batch", as_template)
    encoded([an_item(1)])
    with pytest.raises(UnsupportedModel, match="some text became a control token"):
        encoded([an_item(1), an_item(2, answer="<|return|>")])


SCRIPT = """
import sys, json
from gradelora.artifacts import ModelSnapshot, ValidatedRecords
from gradelora.config import EncodeConfig, Runtime
from pathlib import Path
from gradelora.encode import encode
records = ValidatedRecords.model_validate_json(sys.argv[1])
snapshot = ModelSnapshot.model_validate_json(sys.argv[2])
out = Path(sys.argv[3]); out.mkdir()
config = EncodeConfig(layout="harmony", max_length=600)
result = encode(config, records, snapshot, out=out, runtime=Runtime(encode_workers=int(sys.argv[4])))
heavy = {"torch", "transformers", "datasets", "pandas"} & set(sys.modules)
print(json.dumps([result.digest, sorted(heavy)]))
"""


@pytest.mark.slow
def test_another_process_gives_the_same_digest_and_imports_nothing_heavy(tmp_path):
    items = [
        an_item(n, split=SPLITS[n % 4], question_key=f"q{n % 9}", score=n % 4 / 2, rater2_score=[None, 1.0][n % 2],
                group=[None, "x", "y"][n % 3], answer="boils " * (n * 3 % 400))
        for n in range(300)
    ]  # fmt: skip
    records = records_of(tmp_path / "in", items)
    folder = write_tokenizer(tmp_path / "tokenizer")
    snapshot = ModelSnapshot(path=folder, files=(), repo_id="o/m", commit="c")
    answers = set()
    for seed, workers in (("0", "1"), ("1", "2"), ("77", "1")):
        arguments = [records.model_dump_json(), snapshot.model_dump_json(), str(tmp_path / f"out{seed}"), workers]
        env = {key: value for key, value in os.environ.items() if key != "RAYON_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            env=env | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.add(done.stdout)
    assert len(answers) == 1
    assert json.loads(answers.pop())[1] == []


def test_the_stage_runs_in_a_child_process(tmp_path):
    records = records_of(tmp_path / "in", [an_item(1)])
    folder = write_tokenizer(tmp_path / "tokenizer")
    snapshot = ModelSnapshot(path=folder, files=(), repo_id="o/m", commit="c")
    out = tmp_path / "out"
    dataset = child.call(encode, HARMONY_CONFIG, records, snapshot, out=out, runtime=Runtime())
    assert dataset.splits.train == 1
    assert rows(dataset)[0]["item_id"] == "a:1:0"


def test_the_encoding_is_that_of_version_2(tmp_path, encoded):
    # Bytes alone as vocabulary: no training that another release of tokenizers could do otherwise.
    # When this fails on purpose, bump gradelora.encode.VERSION.
    write_tokenizer(tmp_path / "bytes", merges=0)
    snapshot = ModelSnapshot(path=tmp_path / "bytes", files=(), repo_id="o/m", commit="c")
    items = [
        an_item(1),
        an_item(2, answer="é <|end|>", score=2.5, student_id="p7"),
        an_item(3, split="validation", answer="hot " * 99),
    ]
    out = tmp_path / "out"
    out.mkdir()
    config = EncodeConfig(layout="harmony", max_length=900)
    dataset = encode(config, records_of(tmp_path / "in", items), snapshot, out=out, runtime=Runtime())
    content = json.dumps([rows(dataset), rows(dataset, "validation"), lines(dataset)])
    content += (out / "candidates.json").read_text()
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "66665f7c1852f18e"
