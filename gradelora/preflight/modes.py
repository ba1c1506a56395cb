"""Every way to run the same training on the same machine, side by side, the cheapest change first."""

from collections.abc import Collection, Iterable
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.config import RunConfig
from gradelora.config_file import build_config
from gradelora.errors import BadConfig
from gradelora.hardware import Hardware
from gradelora.nodes import number_of_nodes, processes_on_each
from gradelora.preflight.later import EVALUATION, later_stages, runs
from gradelora.preflight.memory import MemoryPlan, Row, plan_memory
from gradelora.preflight.size import ModelSize
from gradelora.preflight.workload import Workload, target_tokens

# Experts unpacked at a time: an eighth of gpt-oss-120b's.
CHUNK = 16


class Mode(Frozen):
    """A way to run: the `--set` options that lead there, and the memory of every stage."""

    mode: str
    changes: tuple[str, ...]
    stages: tuple[MemoryPlan, ...]
    sealed: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[MemoryPlan, ...]:
        """Memory of the stages that would run."""
        return tuple(s for s in self.stages if runs(s, self.sealed))

    @property
    def fits(self) -> bool:
        """Whether every stage fits: training alone is not enough."""
        return all(s.fits for s in self.counted)

    @property
    def tight(self) -> bool:
        """Whether it fits by less than the plan may be off."""
        return self.fits and any(s.tight for s in self.counted)

    @property
    def tightest(self) -> MemoryPlan:
        """The stage that lacks most, or has least to spare."""
        return max(self.counted or self.stages, key=lambda s: s.needed_bytes - s.available_bytes)

    @property
    def options(self) -> str:
        """`--set train.weights=packed --set ...`: what makes the same command pass."""
        return " ".join(f"--set {change}" for change in self.changes)


def stages_of(run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware) -> tuple[MemoryPlan, ...]:
    """Training first, then all that must fit beside or after it."""
    row = Row(work.row_tokens, work.positions)
    training = plan_memory(run.train, row, size, hardware)
    plans = (training, *later_stages(run, work, size, hardware))
    nodes = number_of_nodes(run.runtime)
    return plans if nodes == 1 else tuple(_on_each(plan, run, nodes) for plan in plans)


def _on_each(plan: MemoryPlan, run: RunConfig, nodes: int) -> MemoryPlan:
    """Ranks that share a host's memory are those of one of several nodes."""
    if plan.mode == EVALUATION or plan.processes_per_device != run.train.processes:
        return plan
    return plan.model_copy(update={"processes_per_device": processes_on_each(run.train, nodes)})


def modes_of(
    run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware, sealed: Collection[str] = ()
) -> tuple[Mode, ...]:
    """The alternatives to the configured mode; all see as many answers an optimizer step as it does.

    What is `sealed` stays so: another way of training would be another training.
    """
    found: dict[tuple[str, ...], Mode] = {}
    for changes in [{}] if "train" in sealed else _candidates(run, size, hardware):
        for more in _with_evaluation(run, size, changes):
            options = tuple(f"{name}={_spelled(value)}" for name, value in more.items())
            try:
                other = build_config(run.model_dump(mode="json"), options)
            except BadConfig:
                continue
            try:
                stages = stages_of(other, work_of(work, other), size, hardware)
            except BadConfig:
                # One process for all GPUs reaches those of one machine alone.
                continue
            kept = tuple(s for s in sealed if not _touches(s, more))
            mode = Mode(mode=_name(other), changes=options, stages=stages, sealed=kept)
            if options and options not in found:
                found[options] = mode
            # What eases the evaluation alone is of use only where nothing else is too large.
            if {s.mode for s in mode.counted if s.tight or not s.fits} != {EVALUATION}:
                break
    return tuple(found.values())


def _touches(stage: str, changes: dict[str, Any]) -> bool:
    """Whether a change of settings makes another artifact of the stage."""
    sections = {"evaluate": ("evaluate.",), "merge": ("evaluate.", "merge.")}.get(stage, ())
    return any(name.startswith(sections) for name in changes) if sections else False


def work_of(work: Workload, other: RunConfig) -> Workload:
    """The largest row under another limit of answers a row; real rows are known for the configured limit alone."""
    answers = other.train.answers_per_row
    row = min(work.row_tokens, max(work.longest, answers * work.longest))
    positions = work.positions if work.exact else min(row, answers * target_tokens(other))
    return work.model_copy(update={"row_tokens": row, "positions": positions})


def _candidates(run: RunConfig, size: ModelSize, hardware: Hardware) -> Iterable[dict[str, Any]]:
    """Changes in the order of what they cost: nothing, then time, then much time."""
    train = run.train
    smaller = _smaller_rows(run)
    checkpointing = {} if train.gradient_checkpointing else {"train.gradient_checkpointing": True}
    packed: dict[str, Any] = {}
    if size.expert_disk_bytes:
        packed = {} if train.weights == "packed" else {"train.weights": "packed"}
        packed |= {"train.parallel": "zero2"} if train.parallel == "zero3" else {}
    chunk = {"train.expert_chunk": CHUNK} if size.experts > CHUNK and not train.expert_chunk else {}
    yield {}
    for start in ({}, packed):
        yield start
        yield start | smaller
        yield start | checkpointing
        yield start | checkpointing | smaller
    if size.expert_disk_bytes:
        yield packed | checkpointing | smaller | chunk
    plain = {} if train.weights == "bf16" else {"train.weights": "bf16"}
    if train.device == "cpu" and train.processes > 1:
        # Every rank holds a model in the same memory.
        yield packed | _one_process(run)
    if train.device == "cuda" and hardware.gpus > 1:
        for way in _spread_ways(run, hardware):
            yield plain | way
            yield plain | way | checkpointing
            yield plain | checkpointing | _joined(run, way, smaller)
        if size.expert_disk_bytes and train.parallel == "layers":
            yield packed | _all_gpus(run, hardware) | {"train.parallel": "zero2"}
    yield packed | checkpointing | {"train.answers_per_row": 1, "train.accumulation": _times(run)}


def _spread_ways(run: RunConfig, hardware: Hardware) -> Iterable[dict[str, Any]]:
    """Weights spread over the GPUs: by ZeRO-3, or a layer here and a layer there in one process."""
    train = run.train
    if train.parallel != "zero3":
        ranks = _all_gpus(run, hardware) if train.processes == 1 else {}
        yield {"train.parallel": "zero3"} | ranks
    if train.parallel != "layers":
        yield {"train.parallel": "layers"} | _one_process(run)


def _joined(run: RunConfig, way: dict[str, Any], smaller: dict[str, Any]) -> dict[str, Any]:
    """Both changes; where each raises the accumulation, by both."""
    before, name = run.train.accumulation, "train.accumulation"
    return way | smaller | {name: way.get(name, before) * smaller.get(name, before) // before}


def _one_process(run: RunConfig) -> dict[str, Any]:
    """As many answers an optimizer step, by one process alone."""
    train = run.train
    if train.processes == 1:
        return {}
    return {"train.processes": 1, "train.accumulation": train.accumulation * train.processes}


def _all_gpus(run: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """As many answers an optimizer step, by one process a GPU, or by as many as divide the micro-steps."""
    train = run.train
    micro = train.accumulation * train.processes
    ranks = max(n for n in range(1, hardware.gpus + 1) if micro % n == 0)
    return {"train.processes": ranks, "train.accumulation": micro // ranks} if ranks != train.processes else {}


def _smaller_rows(run: RunConfig) -> dict[str, Any]:
    """Fewer rows a micro-step, by their smallest divisor; of a single row fewer answers in it."""
    train = run.train
    name, count = ("micro_batch_rows", train.micro_batch_rows) if train.micro_batch_rows > 1 else (
        "answers_per_row", train.answers_per_row)  # fmt: skip
    if count == 1:
        return {}
    part = next(n for n in range(2, count + 1) if count % n == 0)
    return {f"train.{name}": count // part, "train.accumulation": train.accumulation * part}


def _times(run: RunConfig) -> int:
    return run.train.accumulation * run.train.answers_per_row


def _with_evaluation(run: RunConfig, size: ModelSize, changes: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The change alone, and with what lets the evaluation fit, too."""
    yield changes
    packed = {"evaluate.weights": "packed"} if size.expert_disk_bytes and run.evaluate.weights != "packed" else {}
    if packed:
        yield changes | packed
    if run.runtime.evaluate_rows > 1:
        yield changes | packed | {"runtime.evaluate_rows": 1}


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(run: RunConfig) -> str:
    train = run.train
    details = {
        "checkpointing": train.gradient_checkpointing,
        f"{train.expert_chunk} experts at a time": train.expert_chunk and train.weights == "packed",
        "one answer a row": train.answers_per_row == 1,
    }
    return ", ".join([f"{train.weights} + {train.parallel}", *(name for name, holds in details.items() if holds)])
