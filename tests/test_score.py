"""Scoring new answers with an adapter, on a tiny gpt-oss with a real tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

import gradelora.score as scoring
from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot, SplitCounts
from gradelora.config import EncodeConfig, EvaluateConfig, LoraSettings
from gradelora.errors import BadConfig, BadData
from gradelora.records import collect_data_files
from gradelora.score import score
from gradelora.score.scored import ScoredAnswer
from tests.tiny_models import save_gpt_oss
from tests.tiny_tokenizers import write_tokenizer

ENCODE = EncodeConfig(layout="harmony", max_length=512)
EVALUATION = EvaluateConfig(device="cpu", weights="packed", precision="fp32")
KNOWN = {"question": "Why does water boil?", "max_score": 2, "question_id": "boil"}
NEW = {"question": "What is ice?", "max_score": 1.5, "rubric": "Names water."}


def record(*items: dict[str, Any]) -> dict[str, Any]:
    return {"rubric_alignment": list(items)}


RECORDS = [
    record({**KNOWN, "answer": "The heat."}, {**NEW, "answer": "Cold water."}),
    record({**KNOWN, "answer": "The heat."}, {"question": "No maximum?", "answer": "None."}),
    record({**KNOWN, "answer": "Steam goes up."}),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: Any) -> tuple[ModelSnapshot, Adapter]:
    import torch

    from gradelora.model.adapter import attach
    from gradelora.model.load import load_base

    root = tmp_path_factory.mktemp("score-parts")
    folder = write_tokenizer(root / "base")
    save_gpt_oss(folder, vocab_size=512)
    snapshot = ModelSnapshot.collect(folder, repo_id="tiny/gpt-oss", commit="c0")
    torch.manual_seed(1)
    attach(load_base(folder, weights="packed", precision="fp32", device="cpu"), LoraSettings()).save_pretrained(
        root / "adapter"
    )
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    return snapshot, Adapter.collect(root / "adapter", repo_id="tiny/gpt-oss", commit="c0", **facts)


@pytest.fixture(scope="module")
def trained_on(parts: Any, tmp_path_factory: Any) -> EncodedDataset:
    """The known question was scored in half points."""
    from gradelora.artifacts import sha256_text
    from gradelora.prompt import load_layout

    layout = load_layout(parts[0].path, ENCODE)
    scores = [0, 0.5, 1, 1.5, 2]
    entry = {"max_score": 2, "step": 0.5, "scores": scores, "targets": [layout.candidate(s) for s in scores]}
    folder = tmp_path_factory.mktemp("encoded")
    (folder / "candidates.json").write_text(json.dumps({sha256_text("boil")[:16]: entry}))
    counts = SplitCounts(train=1, validation=0, unseen_answers=0, unseen_questions=0)
    return EncodedDataset.collect(folder, layout="harmony", splits=counts, tokens=0, longest=0, pad_token_id=0)


@pytest.fixture
def files(tmp_path: Path) -> Any:
    (tmp_path / "new.json").write_text(json.dumps(RECORDS))
    return collect_data_files((str(tmp_path / "new.json"),))


def lines(path: Path) -> list[ScoredAnswer]:
    return [ScoredAnswer.model_validate_json(line) for line in path.read_text().splitlines()]


def test_answers_without_scores_are_scored_with_confidence_and_a_flag(
    parts: Any, trained_on: EncodedDataset, files: Any, tmp_path: Path
) -> None:
    done = score(ENCODE, EVALUATION, *parts, files, out=tmp_path / "out", threshold=0.9, trained_on=trained_on)
    found = {line.item_id: line for line in lines(done.file)}
    assert sorted(found) == ["new:0:0", "new:0:1", "new:1:0", "new:1:1", "new:2:0"]
    assert found["new:0:0"].known_question
    assert found["new:0:0"].score in (0, 0.5, 1, 1.5, 2)
    assert found["new:0:0"].model_dump(exclude={"item_id", "record_index"}) == found["new:1:0"].model_dump(
        exclude={"item_id", "record_index"}
    )
    # The new question takes the finest step of the known ones.
    assert not found["new:0:1"].known_question
    assert found["new:0:1"].score in (0, 0.5, 1, 1.5)
    assert found["new:1:1"].score is None
    assert found["new:1:1"].send_to_human
    assert "maximum above 0 is missing" in found["new:1:1"].reason
    for line in found.values():
        assert line.send_to_human == (line.confidence is None or line.confidence < 0.9)
    assert (done.answers, done.resumed, done.unscored, done.new_questions) == (5, 0, 1, 1)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    parts: Any, trained_on: EncodedDataset, files: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 2)

    def run(folder: str) -> Any:
        return score(ENCODE, EVALUATION, *parts, files, out=tmp_path / folder, trained_on=trained_on)

    whole = run("whole").file.read_bytes()
    cut = tmp_path / "cut" / "scores.jsonl"
    run("cut")
    # Killed while it wrote the fourth line.
    cut.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"item_id": "ne')
    again = run("cut")
    # Of the second chunk one line was whole: it is scored again together with the other.
    assert (again.answers, again.resumed) == (5, 2)
    assert cut.read_bytes() == whole
    monkeypatch.setattr("gradelora.scoring.load.load_both", None)
    assert run("cut").resumed == 5


def test_a_folder_of_another_run_is_refused(parts: Any, files: Any, tmp_path: Path) -> None:
    score(ENCODE, EVALUATION, *parts, files, out=tmp_path / "out", threshold=0.5)
    with pytest.raises(BadConfig, match="another threshold; name another folder"):
        score(ENCODE, EVALUATION, *parts, files, out=tmp_path / "out", threshold=0.6)


def test_an_answer_that_is_too_long_is_shortened_or_sent_to_a_human(parts: Any, tmp_path: Path) -> None:
    (tmp_path / "long.json").write_text(json.dumps([record({**KNOWN, "answer": "steam " * 2000})]))
    files = collect_data_files((str(tmp_path / "long.json"),))
    (short,) = lines(score(ENCODE, EVALUATION, *parts, files, out=tmp_path / "short").file)
    assert short.score is not None
    config = ENCODE.model_copy(update={"over_length": "quarantine"})
    (left,) = lines(score(config, EVALUATION, *parts, files, out=tmp_path / "left").file)
    assert left.score is None
    assert left.reason == "does not fit into encode.max_length 512"


def test_a_broken_file_stops_the_run_before_the_model_is_loaded(parts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.scoring.load.load_both", None)
    (tmp_path / "bad.json").write_text('[{"rubric_alignment": [')
    files = collect_data_files((str(tmp_path / "bad.json"),))
    with pytest.raises(BadData, match=r"bad\.json: line 1, column \d+ .*mend the file"):
        score(ENCODE, EVALUATION, *parts, files, out=tmp_path / "out")
