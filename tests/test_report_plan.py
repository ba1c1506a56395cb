"""The plan held against what happened: what is compared with what, and how it is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import ASIDE, Adapter, EncodedDataset, EvalReport, Interval, SplitCounts, ValidatedRecords
from gradelora.preflight.clock import StageTime
from gradelora.preflight.disk import REPORT_BYTES, DiskPlan
from gradelora.preflight.measured import trained
from gradelora.preflight.memory import MemoryPlan, Need
from gradelora.preflight.plan import Plan
from gradelora.preflight.workload import Workload
from gradelora.report import StageRow, compare
from gradelora.report.compared import Compared, Comparison
from gradelora.store import Obtained
from gradelora.why import Foreseen
from tests.test_report import plan as bare_plan

SPLITS = SplitCounts(train=8, validation=0, unseen_answers=4, unseen_questions=0)
STAGES = ("validate", "encode", "train", "evaluate")


def memory(mode: str, *sizes: int, device: str = "host") -> MemoryPlan:
    names = ("weights", "context", "fragmentation")
    needs = tuple(Need(what=n, bytes=s) for n, s in zip(names, sizes, strict=False))
    return MemoryPlan(mode=mode, device=device, processes_per_device=2, available_bytes=10**12, needs=needs)


def plan(device: str = "host", exact: bool = True) -> Plan:
    needs = {"records and encoded data": 80, "adapter": 1000, "predictions and report": REPORT_BYTES + 50}
    return bare_plan().model_copy(
        update={
            "memory": memory("packed + zero2", 600, 200, 50, device=device),
            "later": (memory("loading", 700, 200, 50, device=device), memory("evaluation", 500, 100, device=device)),
            "disk": (DiskPlan(folder=Path("/d"), free_bytes=1, needs=tuple(_needs(needs))),),
            "work": Workload(
                source="",
                exact=exact,
                longest=1,
                longest_branch=1,
                row_tokens=1,
                positions=1,
                steps=3,
                train_tokens=330,
            ),
            "times": tuple(StageTime(stage=s, low_s=5, seconds=10, high_s=20, source=f"estimated {s}") for s in STAGES),
            "stages": tuple(Foreseen(stage=s, state="run", causes=()) for s in STAGES),
        }
    )


def _needs(sizes: dict[str, int]) -> list[Need]:
    return [Need(what=what, bytes=size) for what, size in sizes.items()]


def save_progress(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / ASIDE).mkdir(parents=True)
    (folder / ASIDE / "progress.jsonl").write_text("\n".join(map(json.dumps, lines)))


def line(step: int, seconds: float, tokens_per_s: float, peak: int = 800) -> dict[str, Any]:
    """A step of 100 tokens that ended after so many seconds."""
    rate = {"tokens": 100, "tokens_per_s": tokens_per_s, "peak_memory_bytes": peak}
    return {"step": step, "seconds": seconds, "loss": 1.0, **rate}


@pytest.fixture
def done(tmp_path: Path) -> list[Obtained[Any]]:
    """Four stages that ran, 3 steps of 100 tokens in training."""
    save_progress(tmp_path / "train", [line(1, 1, 100), line(2, 2, 100, 900), line(3, 4, 50)])
    (tmp_path / "train" / "adapter").write_bytes(bytes(1250))
    for name, size in (("validate", 30), ("encode", 70), ("evaluate", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(size))
    none = Interval(value=None, low=None, high=None)
    artifacts = (
        ValidatedRecords.collect(tmp_path / "validate", items=8, records=2, quarantined=0, warnings=0, splits=SPLITS),
        EncodedDataset.collect(tmp_path / "encode", layout="x", splits=SPLITS, tokens=1, longest=1, pad_token_id=0),
        Adapter.collect(
            tmp_path / "train",
            repo_id="o/m",
            commit="c",
            trainable_parameters=1,
            total_parameters=2,
            steps=3,
            final_loss=0,
        ),
        EvalReport.collect(
            tmp_path / "evaluate", split="unseen_answers", items=4, base_qwk=none, adapter_qwk=none, qwk_gain=none
        ),
    )
    return [Obtained(s, a, False, 8.0, "no artifact", s) for s, a in zip(STAGES, artifacts, strict=True)]


def rows(done: list[Obtained[Any]], **receipt: Any) -> list[StageRow]:
    return [StageRow(stage=o.label, cached=o.cached, seconds=o.seconds, why=o.why, **receipt) for o in done]


def figures(comparison: Comparison) -> dict[tuple[str, str], Compared]:
    return {(c.stage, c.figure): c for c in comparison.figures}


def test_each_planned_figure_stands_beside_the_measured_one_with_its_error(done: list[Obtained[Any]]) -> None:
    found = figures(compare(plan(), done, rows(done, peak_rss_bytes=1000)))
    peak = found["train", "the largest process"]
    # Loading was the larger of the two moments, per process; a rank may hold more than rank 0.
    assert (peak.planned, peak.measured, round(peak.error or 0, 2)) == (950, 1000, -0.05)
    assert found["evaluate", "the largest process"].planned == 600
    assert (found["train", "steps"].planned, found["train", "steps"].measured) == (3, 3)
    tokens = found["train", "tokens"]
    assert (tokens.planned, tokens.measured, tokens.held) == (330, 300, True)
    assert found["validate and encode", "records and encoded data"].measured == 100
    assert found["evaluate", "predictions and report"].planned == 50
    adapter = found["train", "adapter"]
    assert (adapter.measured, adapter.held, adapter.error) == (1250, True, pytest.approx(-0.2))
    time = found["train", "seconds"]
    assert (time.planned, time.measured, time.held, time.source) == (10, 8, True, "estimated train")
    whole = found["all stages", "seconds"]
    assert (whole.planned, whole.measured) == (40, 32)


def test_a_gpu_is_compared_by_what_its_allocator_handed_out(done: list[Obtained[Any]]) -> None:
    measured = rows(done, peak_rss_bytes=10**9, peak_gpu_bytes=480)
    found = figures(compare(plan("each GPU"), done, measured))
    assert found["train", "one process on a GPU, as allocated"].planned == 700
    assert found["train", "one process on a GPU, as allocated"].measured == 900
    assert found["evaluate", "one process on a GPU, as allocated"].measured == 480


def test_a_cached_stage_says_so_with_the_figures_of_its_receipt(done: list[Obtained[Any]]) -> None:
    again = [Obtained(o.stage, o.artifact, True, 0.1, "verified against its receipt", o.label) for o in done]
    comparison = compare(plan(), again, rows(again, peak_rss_bytes=1000, built_seconds=900.0))
    found = figures(comparison)
    assert all(c.cached for c in comparison.figures)
    assert found["train", "seconds"].error is None
    assert found["train", "seconds"].built_s == 900
    assert found["train", "the largest process"].measured == 1000
    assert comparison.surprises[0] == ("validate: the plan said run, it was cached: verified against its receipt")


def test_a_bound_is_held_by_all_that_stays_below_it(done: list[Obtained[Any]]) -> None:
    found = figures(compare(plan(exact=False), done, rows(done, peak_rss_bytes=500)))
    peak = found["evaluate", "the largest process"]
    assert (peak.planned, peak.measured, peak.bound, peak.held) == (600, 500, True, True)
    assert found["train", "tokens"].source == "an upper bound: nothing was encoded yet"
    assert peak.model_copy(update={"measured": 200.0}).held
    assert not peak.model_copy(update={"measured": 900.0}).held


def test_an_interval_is_held_or_not_whatever_its_middle() -> None:
    figure = Compared(kind="time", stage="t", figure="seconds", planned=10, measured=100, low=1, high=100)
    assert figure.held
    assert not figure.model_copy(update={"high": 99.0}).held
    assert Compared(kind="memory", stage="t", figure="x", planned=121, measured=100).held is False


def test_a_run_cut_off_counts_each_step_once_and_its_last_attempt_alone_for_speed(tmp_path: Path) -> None:
    save_progress(tmp_path, [line(1, 2, 50), line(2, 4, 50), line(3, 6, 50), line(2, 1, 100), line(3, 2, 100)])
    found = trained(tmp_path)
    assert found is not None
    assert (found.tokens, found.steps, found.last_tokens, found.last_seconds) == (300, 3, 200, 2)
    assert found.peak_bytes == 800
    (tmp_path / ASIDE / "progress.jsonl").write_text("{")
    assert trained(tmp_path) is None
