"""The evaluate stage on a tiny gpt-oss with a random adapter."""

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from bench.gate_worlds import even
from bench.gate_worlds import predictions as predictions_of_world
from gradelora import child
from gradelora.artifacts import SPLITS, Adapter, EncodedDataset, EvalReport, ModelSnapshot, SplitCounts
from gradelora.config import EvaluateConfig, LoraSettings, Runtime
from gradelora.errors import BadConfig, ChildFailed, NotEnoughGpus
from gradelora.evaluate import evaluate
from gradelora.evaluate.metrics import read_metrics
from gradelora.evaluate.predictions import read_predictions
from gradelora.evaluate.ranks import process_count
from gradelora.evaluate.sections import summarise
from gradelora.store import Store
from tests.tiny_models import VOCAB, save_gpt_oss

END = VOCAB - 1
CONFIG = EvaluateConfig(device="cpu", weights="packed", precision="fp32", resamples=200)
RUNTIME = Runtime(threads=1)
QUESTIONS = 6
DECIDED = "21 11 01 20 00 10 01 12 11 01 01 02 00 21 00 21 22 21 20 20 02 00 20 20 "
SUM_OF_LOGS = -3065.49
FIGURES = "6e61e3e955c43a90"


def encoded(folder: Path, per_split: dict[str, int]) -> EncodedDataset:
    """`per_split` answers to each of QUESTIONS questions in every split, as encode lays them down."""
    import datasets

    generator = random.Random(1)
    candidates = {}
    for q in range(QUESTIONS):
        step = 0.5 if q == 0 else 1.0
        scores = [s * step for s in range(int(2 / step) + 1)]
        targets = [[90, 10 + int(s), *([7, 8] if s % 1 else []), END] for s in scores]
        candidates[f"q{q}"] = {"max_score": 2.0, "step": step, "scores": scores, "targets": targets}
    for split in SPLITS:
        rows = []
        for q in range(QUESTIONS):
            prefix = [20 + q, 30, 31, 32 + q]
            for a in range(per_split.get(split, 0)):
                answer = [generator.randrange(40, 80) for _ in range(3 + a)]
                place = generator.randrange(len(candidates[f"q{q}"]["scores"]))
                rows.append(
                    {
                        "item_id": f"{split}:{a}:{q}",
                        "record_id": f"{split}:{a}",
                        "question_key": f"q{q}",
                        "input_ids": [*prefix, *answer, 33, *candidates[f"q{q}"]["targets"][place]],
                        "prefix_length": len(prefix),
                        "prompt_length": len(prefix) + len(answer) + 1,
                        "score": candidates[f"q{q}"]["scores"][place],
                        "max_score": 2.0,
                        "rater2_score": float(generator.randrange(3)) if a % 2 else None,
                        "student_id": f"s{a}" if split == "validation" else None,
                        "group": "a" if a % 3 else None,
                    }
                )
        features = datasets.Features(
            {
                "item_id": datasets.Value("string"),
                "record_id": datasets.Value("string"),
                "question_key": datasets.Value("string"),
                "input_ids": datasets.List(datasets.Value("int32")),
                "prefix_length": datasets.Value("int32"),
                "prompt_length": datasets.Value("int32"),
                "score": datasets.Value("float64"),
                "max_score": datasets.Value("float64"),
                "rater2_score": datasets.Value("float64"),
                "student_id": datasets.Value("string"),
                "group": datasets.Value("string"),
            }
        )
        columns = {name: [row[name] for row in rows] for name in features}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / split), num_shards=1)
    (folder / "candidates.json").write_text(json.dumps(candidates))
    counts = SplitCounts(**{s: QUESTIONS * per_split.get(s, 0) for s in SPLITS})
    return EncodedDataset.collect(folder, layout="harmony", splits=counts, tokens=0, longest=0, pad_token_id=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: Any) -> tuple[ModelSnapshot, Adapter, EncodedDataset]:
    import torch

    from gradelora.model.adapter import attach
    from gradelora.model.load import load_base

    root = tmp_path_factory.mktemp("parts")
    snapshot = ModelSnapshot.collect(save_gpt_oss(root / "base"), repo_id="tiny/gpt-oss", commit="c0")
    torch.manual_seed(1)
    model = attach(load_base(snapshot.path, weights="packed", precision="fp32", device="cpu"), LoraSettings())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(root / "adapter")
    adapter = Adapter.collect(
        root / "adapter",
        repo_id="tiny/gpt-oss",
        commit="c0",
        trainable_parameters=1,
        total_parameters=2,
        steps=1,
        final_loss=1.0,
    )
    data = encoded(root / "data", {"train": 3, "validation": 1, "unseen_answers": 4})
    return snapshot, adapter, data


@pytest.fixture(scope="module")
def report(parts: Any, tmp_path_factory: Any) -> EvalReport:
    return evaluate(CONFIG, *parts, out=tmp_path_factory.mktemp("report"), runtime=RUNTIME)


def test_every_held_out_item_is_predicted_once_in_the_order_of_the_data(report: EvalReport) -> None:
    predictions = read_predictions(report.path / "predictions.jsonl")
    assert [p.item_id for p in predictions] == [f"unseen_answers:{a}:{q}" for q in range(QUESTIONS) for a in range(4)]
    assert all(p.base_score in p.scores and p.adapter_score in p.scores for p in predictions)


def test_the_adapter_is_off_for_the_base_and_on_for_itself(report: EvalReport, parts: Any) -> None:
    from gradelora.model.load import load_base
    from gradelora.scoring.candidates import Prompt, read_candidates
    from gradelora.scoring.held_out import read_held_out
    from gradelora.scoring.likelihood import score_prompts

    snapshot, _, data = parts
    alone = load_base(snapshot.path, weights="bf16", precision="fp32", device="cpu")
    prompts = [Prompt(i.ids, i.prefix_length, i.question_key) for i in read_held_out(data, ["unseen_answers"])]
    found = score_prompts(alone, prompts, read_candidates(data.path), pad_id=0, rows_per_pass=2)
    predictions = read_predictions(report.path / "predictions.jsonl")
    for prediction, expected in zip(predictions, found, strict=True):
        assert prediction.base_log_probabilities == pytest.approx(expected.log_probabilities, abs=1.1e-4)
    assert any(p.base_log_probabilities != p.adapter_log_probabilities for p in predictions)


def test_the_facts_are_the_headline_section_of_metrics(report: EvalReport) -> None:
    metrics = read_metrics(report.path)
    assert (report.split, report.items) == ("unseen_answers", 24)
    assert metrics.empty_splits == ("unseen_questions",)
    section = metrics.section("unseen_answers")
    assert section is not None
    assert report.base_qwk == section.whole.base.qwk
    assert report.qwk_gain == section.whole.gain.qwk
    assert section.whole.unit == "question"
    assert [s.name for s in section.by_group] == ["(no group)", "a"]
    assert sum(s.items for s in section.by_group) == 24
    assert len(section.by_question) == QUESTIONS
    assert section.whole.ceiling.items == 12
    assert section.records.items == 4


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_one_process_or_two_give_the_same_bytes(report: EvalReport, parts: Any, tmp_path: Path, processes: int) -> None:
    lines: list[str] = []
    runtime = RUNTIME.model_copy(update={"evaluate_processes": processes})
    again = child.call(evaluate, CONFIG, *parts, out=tmp_path, runtime=runtime, on_line=lines.append)
    assert again.digest == report.digest
    names = [f"rank {rank}: " for rank in range(processes)] if processes > 1 else [""]
    done = [re.search(rf"evaluate: {name}adapter: (\d+) of \1 ", "\n".join(lines)) for name in names]
    assert sum(int(found[1]) for found in done if found) == 24


@pytest.mark.slow
def test_a_rank_that_dies_fails_the_stage_with_its_last_lines_and_a_second_run_is_whole(
    report: EvalReport, parts: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    killed: list[int] = []

    def kill(line: str) -> None:
        if "rank 1: loading" in line and not killed:
            (request,) = tmp_path.glob("evaluate/.*.building/aside/rank-1/aside/request.json")
            killed.extend(pid for pid in _pids() if str(request) in _command(pid))
            os.kill(killed[0], signal.SIGKILL)

    two = RUNTIME.model_copy(update={"evaluate_processes": 2})
    with pytest.raises(ChildFailed, match=r"was killed by SIGKILL; log: .*rank-1(?s:.*)evaluate: rank 1: loading"):
        store.obtain(evaluate, CONFIG, *parts, runtime=two, run=functools.partial(child.call, on_line=kill))
    assert not [pid for pid in _pids() if str(tmp_path) in _command(pid)], "a rank outlived the stage"
    again = store.obtain(evaluate, CONFIG, *parts, runtime=RUNTIME, run=child.here)
    assert again.artifact.digest == report.digest


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_more_processes_than_gpus_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.evaluate.ranks.gpu_bytes", lambda: [1, 1])
    config = CONFIG.model_copy(update={"device": "cuda"})
    assert process_count(config, Runtime(), 100) == 2
    assert process_count(config, Runtime(), 1) == 1
    assert process_count(CONFIG, Runtime(), 100) == 1
    with pytest.raises(NotEnoughGpus, match="evaluate_processes=3, but this machine has 2"):
        process_count(config, Runtime(evaluate_processes=3), 100)


def test_splits_without_items_are_refused_with_the_remedy(parts: Any, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"splits": ("unseen_questions",)})
    with pytest.raises(BadConfig, match=r"none has an item .*unseen_answers 24.*raise validation\.split"):
        evaluate(config, *parts, out=tmp_path, runtime=RUNTIME)


def test_the_judgements_are_those_of_version_3(report: EvalReport) -> None:
    """When this fails on purpose, bump gradelora.evaluate.VERSION.

    No hash of predictions.jsonl: on another kind of CPU a sum differs in its seventh digit, and
    of these 160 log-probabilities one then lies on the other side of its fourth decimal.
    """
    predictions = read_predictions(report.path / "predictions.jsonl")
    decided = "".join(f"{p.base_score:g}{p.adapter_score:g} " for p in predictions)
    assert decided == DECIDED
    both = [value for p in predictions for value in (*p.base_log_probabilities, *p.adapter_log_probabilities)]
    assert len(both) == 160
    assert sum(both) == pytest.approx(SUM_OF_LOGS, abs=0.01)


def test_the_figures_are_those_of_version_3() -> None:
    """Sums of points, no tensors: the same bytes everywhere.  When this fails on purpose, bump VERSION."""
    world = even(7, 9, matter=True, named=True)
    made = [p.model_copy(update={"group": "ab"[i % 2]}) for i, p in enumerate(predictions_of_world(3, world, 0.4))]
    metrics = summarise(made, {p.item_id: i % 5 for i, p in enumerate(made)}, {}, CONFIG)
    assert hashlib.sha256(metrics.model_dump_json().encode()).hexdigest()[:16] == FIGURES
