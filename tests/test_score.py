"""Scoring new answers with an adapter, on a tiny gpt-oss with a real tokenizer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gradelora.score as scoring
from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, Interval, ModelSnapshot, SplitCounts
from gradelora.champion import promote
from gradelora.config import (
    BaseModelConfig,
    DataConfig,
    EncodeConfig,
    EvaluateConfig,
    LoraSettings,
    RunConfig,
    Runtime,
    ScoreConfig,
    StoreConfig,
)
from gradelora.errors import BadConfig, BadData, Damaged
from gradelora.receipt import Receipt
from gradelora.records import collect_data_files
from gradelora.sandbox.demo import REPO_ID
from gradelora.score import score
from gradelora.score.chosen import choose
from gradelora.score.scored import KnownQuestions, ScoredAnswer, Scores
from tests.conftest import ROOT
from tests.tiny_models import save_gpt_oss
from tests.tiny_tokenizers import write_tokenizer

ENCODE = EncodeConfig(layout="harmony", max_length=512)
CONFIG = ScoreConfig(encode=ENCODE, weights="packed", precision="fp32", device="cpu", threshold=0.9)
RUNTIME = Runtime(threads=1)
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


def scored(parts: Any, files: Any, known: EncodedDataset | None, out: Path, config: ScoreConfig = CONFIG) -> Scores:
    out.mkdir(exist_ok=True)
    return score(config, *parts, files, KnownQuestions.of(known), out=out, runtime=RUNTIME)


def test_answers_without_scores_are_scored_with_confidence_and_a_flag(
    parts: Any, trained_on: EncodedDataset, files: Any, tmp_path: Path
) -> None:
    done = scored(parts, files, trained_on, tmp_path / "out")
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
        assert line.send_to_human == (line.confidence is None or line.confidence < 0.9 or line.mass < 0.9)
    # An untrained model would rather write something else, however sure it is of one score beside the others.
    assert "the allowed scores together have a probability of 0.0" in found["new:0:0"].reason
    to_human = sum(line.send_to_human for line in found.values())
    assert (done.answers, done.to_human, done.unscored, done.new_questions) == (5, to_human, 1, 1)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    parts: Any, trained_on: EncodedDataset, files: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 2)
    whole = scored(parts, files, trained_on, tmp_path / "whole")
    cut = tmp_path / "cut" / "scores.jsonl"
    cut.parent.mkdir()
    # Killed while it wrote the fourth line.
    lines_of_whole = whole.file.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines_of_whole[:3]) + b'{"item_id": "ne')
    capsys.readouterr()
    again = scored(parts, files, trained_on, tmp_path / "cut")
    # Of the second chunk one line was whole: it is scored again together with the other.
    assert "3 answers to score, 2 scored before" in capsys.readouterr().out
    assert again.digest == whole.digest
    monkeypatch.setattr("gradelora.scoring.load.load_both", None)
    assert scored(parts, files, trained_on, tmp_path / "cut").digest == again.digest


def test_without_training_data_a_question_takes_whole_points(parts: Any, files: Any, tmp_path: Path) -> None:
    found = lines(scored(parts, files, None, tmp_path / "out").file)
    assert {line.score for line in found} <= {0, 1, 1.5, 2, None}
    assert not any(line.known_question for line in found)


def test_an_answer_that_is_too_long_is_shortened_or_sent_to_a_human(parts: Any, tmp_path: Path) -> None:
    (tmp_path / "long.json").write_text(json.dumps([record({**KNOWN, "answer": "steam " * 2000})]))
    files = collect_data_files((str(tmp_path / "long.json"),))
    (short,) = lines(scored(parts, files, None, tmp_path / "short").file)
    assert short.score is not None
    config = CONFIG.model_copy(update={"encode": ENCODE.model_copy(update={"over_length": "quarantine"})})
    (left,) = lines(scored(parts, files, None, tmp_path / "left", config).file)
    assert left.score is None
    assert left.reason == "does not fit into encode.max_length 512"


def test_an_answer_on_another_scale_than_in_training_is_not_scored(
    parts: Any, trained_on: EncodedDataset, tmp_path: Path
) -> None:
    """Its score would be one of 0 to 2, beside a maximum of 3."""
    (tmp_path / "other.json").write_text(json.dumps([record({**KNOWN, "max_score": 3, "answer": "The heat."})]))
    files = collect_data_files((str(tmp_path / "other.json"),))
    (line,) = lines(scored(parts, files, trained_on, tmp_path / "out").file)
    assert (line.score, line.send_to_human) == (None, True)
    assert line.reason == "its question was trained with a maximum of 2, here it has 3"


@pytest.mark.parametrize("other", [{"max_score": 3}, {"question": "Why does ice melt?"}, {"rubric": "Names heat."}])
def test_a_question_id_with_two_meanings_scores_none_of_its_answers(parts: Any, tmp_path: Path, other: Any) -> None:
    """The second would be asked with the first one's text, and get its scores."""
    answers = [
        {**KNOWN, "answer": "The heat."},
        {**KNOWN, **other, "answer": "It is hot."},
        {**NEW, "answer": "Water."},
    ]
    (tmp_path / "two.json").write_text(json.dumps([record(*answers)]))
    files = collect_data_files((str(tmp_path / "two.json"),))
    found = {line.item_id: line for line in lines(scored(parts, files, None, tmp_path / "out").file)}
    assert [found[f"two:0:{i}"].score is None for i in range(3)] == [True, True, False]
    assert "its question_id stands with several questions" in found["two:0:0"].reason


def test_a_broken_file_stops_the_run_before_the_model_is_loaded(parts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.scoring.load.load_both", None)
    (tmp_path / "bad.json").write_text('[{"rubric_alignment": [')
    files = collect_data_files((str(tmp_path / "bad.json"),))
    with pytest.raises(BadData, match=r"bad\.json: line 1, column \d+ .*mend the file"):
        scored(parts, files, None, tmp_path / "out")


def run_of(root: Path, repo_id: str = "tiny/gpt-oss") -> RunConfig:
    return RunConfig(
        name="demo",
        base=BaseModelConfig(repo_id=repo_id),
        data=DataConfig(files=("x.json",)),
        encode=EncodeConfig(layout="chat_template"),
        evaluate=EvaluateConfig(device="cpu", precision="fp32"),
        store=StoreConfig(root=root / "store"),
    )


def promoted(root: Path, adapter: Adapter, data_digest: str) -> None:
    nothing = Interval(value=None, low=None, high=None, reason="made up")
    figures = {"base_qwk": nothing, "adapter_qwk": nothing, "qwk_gain": nothing}
    report = EvalReport(path=root, files=(), split="unseen_answers", items=1, **figures)
    promote(root / "store", "demo", adapter=adapter, report=report, data_digest=data_digest, reason="better")


def sealed(root: Path, data: EncodedDataset, config: EncodeConfig) -> EncodedDataset:
    """Encoded data in the store, with the receipt that says how they were encoded."""
    folder = root / "store" / "encode" / "0a1b"
    shutil.copytree(data.path, folder)
    artifact = {**data.model_dump(mode="json"), "path": "."}
    facts = {
        "version": 2,
        "key": "0a1b",
        "inputs": {},
        "versions": {},
        "created": "",
        "seconds": 1,
        "peak_rss_bytes": 1,
    }
    receipt = Receipt(
        stage="encode", digest=data.digest, config=config.model_dump(mode="json"), artifact=artifact, **facts
    )
    (folder / "receipt.json").write_text(receipt.model_dump_json())
    return data.model_copy(update={"path": folder})


def test_the_champion_scores_with_the_prompts_of_its_training(
    parts: Any, trained_on: EncodedDataset, tmp_path: Path
) -> None:
    with pytest.raises(BadConfig, match="demo has no champion; run its finetune deployment, or name"):
        choose(run_of(tmp_path), None)
    promoted(tmp_path, parts[1], trained_on.digest)
    alone = choose(run_of(tmp_path), None)
    assert "its training data are not in the store" in alone.why
    data = sealed(tmp_path, trained_on, ENCODE)
    picked = choose(run_of(tmp_path), None)
    assert picked.why.startswith("the champion of demo since ")
    # As trained, not as the configuration says now.
    assert (picked.encode, alone.encode.layout) == (ENCODE, "chat_template")
    assert (picked.known.path, list(picked.known.read())) == (data.path, list(KnownQuestions.of(trained_on).read()))
    assert picked.base == BaseModelConfig(repo_id="tiny/gpt-oss", revision="c0")
    with pytest.raises(BadConfig, match=r"belongs to tiny/gpt-oss, not to base\.repo_id=other/base"):
        choose(run_of(tmp_path, "other/base"), None)
    with pytest.raises(BadConfig, match="threshold=7 is no probability"):
        picked.config(run_of(tmp_path), 7)


def test_a_folder_as_peft_writes_it_can_be_named(parts: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(parts[1].path, tmp_path / "mine")
    settings = json.loads((copy / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "tiny/gpt-oss", "revision": "c7"}
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    picked = choose(run_of(tmp_path), copy)
    assert picked.base == BaseModelConfig(repo_id="tiny/gpt-oss", revision="c7")
    assert [f.name for f in picked.adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(BadConfig, match=r"no adapter_config\.json with .*; name the folder of an adapter"):
        choose(run_of(tmp_path), tmp_path)


def test_a_damaged_adapter_scores_nothing(parts: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(parts[1].path, tmp_path / "mine")
    promoted(tmp_path, parts[1].model_copy(update={"path": copy}), "d")
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(Damaged, match=r"adapter_model\.safetensors: contents differ"):
        choose(run_of(tmp_path), None)


@pytest.mark.slow
def test_the_flow_scores_with_the_champion_and_is_cached_the_second_time(
    prefect_server: Any, repositories: Path, tmp_path: Path
) -> None:
    from gradelora.model.adapter import attach
    from gradelora.model.load import load_base

    base = repositories / REPO_ID
    model = attach(load_base(base, weights="packed", precision="fp32", device="cpu"), LoraSettings())
    model.save_pretrained(tmp_path / "adapter")
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    adapter = Adapter.collect(tmp_path / "adapter", repo_id=REPO_ID, commit="main", **facts)
    promoted(tmp_path, adapter, "gone")
    (tmp_path / "new.json").write_text(json.dumps(RECORDS))
    overrides = [f"store.root={tmp_path}/store", f"runtime.hub_cache={tmp_path}/hub", "runtime.threads=1"]
    arguments = {
        "files": [str(tmp_path / "new.json")],
        "config": "deployments/demo.yaml",
        "threshold": 0.5,
        "out": str(tmp_path / "out"),
        "overrides": overrides,
    }
    code = "import json, sys; from flows.score import score; "
    code += "print(score(**json.loads(sys.argv[1])).model_dump_json())"

    def run() -> dict[str, Any]:
        command = [sys.executable, "-c", code, json.dumps(arguments)]
        done = subprocess.run(
            command, env=prefect_server.env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return outcome

    first = run()
    assert (first["cached"], first["answers"], first["unscored"], first["new_questions"]) == (False, 5, 1, 2)
    assert "the champion of demo since" in first["adapter"]
    found = lines(Path(first["file"]))
    assert Path(first["file"]) == tmp_path / "out" / "scores.jsonl"
    assert sum(line.send_to_human for line in found) == first["to_human"]
    assert run() == {**first, "cached": True}
