"""The plan held against what happened, figure by figure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from gradelora.artifacts import Adapter, Frozen
from gradelora.preflight import Plan
from gradelora.preflight.clock import cost, total
from gradelora.preflight.disk import REPORT_BYTES
from gradelora.preflight.later import EVALUATION, JUDGING, LOADING, MERGE, VERIFYING
from gradelora.preflight.measured import Trained, trained
from gradelora.preflight.memory import MemoryPlan
from gradelora.report.stages import StageRow
from gradelora.store import Obtained

Kind = Literal["memory", "disk", "work", "time"]
# Within so much of it a figure is called kept where the plan gave no interval.
NEAR = 0.2
# Of the parts of the disk: with what lies aside.
BOUNDS = frozenset({"records and encoded data"})
FETCHED = "weights still to fetch"


class Compared(Frozen):
    """One figure, planned and measured; in bytes, seconds or plain numbers.

    `low` and `high` are the plan's interval, None where it gave a single figure; `bound`: that figure
    is no estimate, but what will not be exceeded.  `cached`: the
    stage was taken from the store, and what is measured stands in its receipt; a time is this run's
    all the same, `built_s` then that of the run which built the artifact.
    """

    kind: Kind
    stage: str
    figure: str
    planned: float
    measured: float
    low: float | None = None
    high: float | None = None
    bound: bool = False
    source: str = ""
    cached: bool = False
    built_s: float | None = None

    @property
    def error(self) -> float | None:
        """Share of what was measured; positive where too much was planned."""
        if not self.planned or not self.measured or (self.kind == "time" and self.cached):
            return None
        return self.planned / self.measured - 1

    @property
    def held(self) -> bool | None:
        """Within the plan's interval or bound, or near its single figure; None where there is nothing to compare."""
        if self.error is None:
            return None
        if self.low is not None and self.high is not None:
            return self.low <= self.measured <= self.high
        return abs(self.error) <= NEAR or (self.bound and self.measured <= self.planned)


class Comparison(Frozen):
    """All figures of one run; `surprises` are stages that did not do what the plan had said."""

    figures: tuple[Compared, ...]
    surprises: tuple[str, ...]


def compare(plan: Plan, done: Sequence[Obtained[Any]], rows: Sequence[StageRow]) -> Comparison:
    """Plan beside receipts, progress and files; `rows` are those of `done`."""
    stages = {row.stage: row for row in rows}
    artifacts = {obtained.label: obtained.artifact for obtained in done}
    found = trained(artifacts["train"].path) if "train" in artifacts else None
    figures = [
        *_memory(plan, stages, found),
        *_work(plan, stages, artifacts, found),
        *_disk(plan, stages, artifacts),
        *_times(plan, rows),
    ]
    return Comparison(figures=tuple(figures), surprises=tuple(_surprises(plan, rows)))


def _memory(plan: Plan, stages: dict[str, StageRow], found: Trained | None) -> Iterator[Compared]:
    """The peak of one process, on the device that the plan counted it for."""
    later = {stage.mode: stage for stage in plan.later}
    # All of these are moments of the processes that train.
    training = [plan.memory, *(later[mode] for mode in (LOADING, JUDGING) if mode in later)]
    peaks = {"train": found.peak_bytes if found else 0}
    for name, planned in (
        ("train", training),
        ("evaluate", _those(later, EVALUATION)),
        # Its model is larger than the one weight that merging holds.
        ("merge", _those(later, VERIFYING) or _those(later, MERGE)),
    ):
        if name not in stages or not planned:
            continue
        row, on_gpu = stages[name], planned[0].device != "host"
        measured = max(peaks.get(name, 0), (row.peak_gpu_bytes if on_gpu else row.peak_rss_bytes) or 0)
        what = "one process on a GPU, as allocated" if on_gpu else "the largest process"
        if measured:
            yield Compared(
                kind="memory",
                stage=name,
                figure=what,
                planned=max(p.process_bytes for p in planned),
                measured=measured,
                **_bounded(plan),
                cached=row.cached,
            )


def _those(later: dict[str, MemoryPlan], mode: str) -> list[MemoryPlan]:
    return [later[mode]] if mode in later else []


def _work(
    plan: Plan, stages: dict[str, StageRow], artifacts: dict[str, Any], found: Trained | None
) -> Iterator[Compared]:
    adapter, work = artifacts.get("train"), plan.work
    if not isinstance(adapter, Adapter) or work is None or work.steps is None or work.train_tokens is None:
        return
    cached = stages["train"].cached
    same: dict[str, Any] = {"kind": "work", "stage": "train", "cached": cached, **_bounded(plan)}
    say: Callable[[str, int, float], Compared] = lambda figure, planned, measured: Compared(  # noqa: E731
        figure=figure, planned=planned, measured=measured, **same
    )
    yield say("steps", work.steps, adapter.steps)
    # Lines of an earlier attempt may be gone: then there is nothing to add up.
    if found and found.steps == adapter.steps:
        yield say("tokens", work.train_tokens, found.tokens)


def _bounded(plan: Plan) -> dict[str, Any]:
    """What is said of all that follows from lengths, where these were not known yet."""
    if plan.work is None or plan.work.exact:
        return {}
    return {"bound": True, "source": "an upper bound: nothing was encoded yet"}


def _disk(plan: Plan, stages: dict[str, StageRow], artifacts: dict[str, Any]) -> Iterator[Compared]:
    """What the run added, by the plan's own parts.  Checkpoints are gone by now: bench_plan measures them."""
    planned = {need.what: need.bytes for disk in plan.disk for need in disk.needs}
    # The page itself is not written yet.
    planned["predictions and report"] = planned.get("predictions and report", 0) - REPORT_BYTES
    parts = {
        FETCHED: ("fetch everything",),
        "records and encoded data": ("validate", "encode"),
        "adapter": ("train",),
        "predictions and report": ("evaluate",),
        "merged model": ("merge",),
    }
    for what, names in parts.items():
        if not all(name in artifacts for name in names) or planned.get(what, 0) <= 0:
            continue
        if what == FETCHED and planned[what] < plan.size.disk_bytes:
            # Only a part was missing, and a snapshot does not tell which.
            continue
        yield Compared(
            kind="disk",
            stage=" and ".join(names),
            figure=what,
            planned=planned[what],
            measured=sum(artifacts[name].total_bytes for name in names),
            bound=what in BOUNDS,
            source="an upper bound" if what in BOUNDS else "",
            cached=all(stages[name].cached for name in names),
        )


def _times(plan: Plan, rows: Sequence[StageRow]) -> Iterator[Compared]:
    planned = {time.stage: time for time in plan.times}
    known = [row for row in rows if row.stage in planned]
    for row in known:
        time = planned[row.stage]
        interval = (None, None) if row.cached else (time.low_s, time.high_s)
        yield Compared(
            kind="time",
            stage=row.stage,
            figure="seconds",
            planned=time.seconds,
            measured=row.seconds,
            low=interval[0],
            high=interval[1],
            source=time.source,
            cached=row.cached,
            built_s=row.built_seconds if row.cached else None,
        )
    if known:
        both = total(tuple(planned[row.stage] for row in known))
        yield Compared(
            kind="time",
            stage="all stages",
            figure="seconds",
            planned=both.seconds,
            measured=sum(row.seconds for row in known),
            low=both.low_s,
            high=both.high_s,
            source=both.source,
            cached=all(row.cached for row in known),
        )


def cost_of(compared: Compared, price_per_hour: float) -> tuple[float, float]:
    """(planned, measured) of a time, in the price's currency."""
    return cost(compared.planned, price_per_hour), cost(compared.measured, price_per_hour)


def _surprises(plan: Plan, rows: Iterable[StageRow]) -> Iterator[str]:
    """`follows` promises nothing: it waited for another stage's bytes."""
    said = {stage.stage: stage.state for stage in plan.stages}
    for row in rows:
        did = "cached" if row.cached else "run"
        if said.get(row.stage, "follows") not in ("follows", did):
            yield f"{row.stage}: the plan said {said[row.stage]}, it was {did}: {row.why}"
