"""The plan: what a run will need in memory, disk, time and money, beside what there is."""

from pathlib import Path

from gradelora.artifacts import BaseModel, DataFiles, EncodedDataset, Frozen
from gradelora.config import RunConfig
from gradelora.errors import UnsupportedModel
from gradelora.hardware import Hardware
from gradelora.preflight.clock import StageTime, stage_times
from gradelora.preflight.disk import DiskPlan, missing_bytes, plan_disk
from gradelora.preflight.estimate import Job
from gradelora.preflight.memory import MemoryPlan
from gradelora.preflight.modes import Mode, modes_of, stages_of
from gradelora.preflight.size import ModelSize, size_of
from gradelora.preflight.workload import Workload, workload_of
from gradelora.why import Foreseen, foresee


class Plan(Frozen):
    """What the run will need, beside what there is.

    `memory` is training's, `later` that of all other stages, `alternatives` other ways to train.
    `elsewhere`: planned for another machine, so this one's free disk says nothing.
    """

    hardware: Hardware
    size: ModelSize
    memory: MemoryPlan
    alternatives: tuple[Mode, ...]
    disk: tuple[DiskPlan, ...]
    later: tuple[MemoryPlan, ...] = ()
    work: Workload | None = None
    stages: tuple[Foreseen, ...] = ()
    times: tuple[StageTime, ...] = ()
    notes: tuple[str, ...] = ()
    elsewhere: bool = False


def make_plan(
    run: RunConfig, base: BaseModel, data: DataFiles | None, cache: Path, hardware: Hardware, *, elsewhere: bool = False
) -> Plan:
    """The plan of a run on `hardware`, whether it fits or not.  Raises UnsupportedModel."""
    _check_packed(run, base)
    size = size_of(base, run.train.lora)
    foresight = foresee(run, base, data)
    encoded = foresight.artifacts.get("encode")
    work = workload_of(run, data, encoded if isinstance(encoded, EncodedDataset) else None)
    memory, *later = stages_of(run, work, size, hardware)
    missing = missing_bytes(base, cache)
    job = Job(run, base, size, work, hardware, fetch_bytes=missing, here=not elsewhere)
    return Plan(
        hardware=hardware,
        size=size,
        memory=memory,
        later=tuple(later),
        alternatives=modes_of(run, work, size, hardware),
        disk=plan_disk(run, base, size, cache, work, data.total_bytes if data else 0, foresight),
        work=work,
        stages=foresight.stages,
        times=stage_times(job, foresight),
        notes=_notes(base, size),
        elsewhere=elsewhere,
    )


def _notes(base: BaseModel, size: ModelSize) -> tuple[str, ...]:
    if not size.assumed:
        return ()
    kind = ", ".join(base.config.get("architectures") or ["an unknown architecture"])
    bounds = ", ".join(size.assumed)
    return (f"{kind}: config.json does not say all that memory follows from; an upper bound with {bounds}",)


def _check_packed(run: RunConfig, base: BaseModel) -> None:
    """Neither training nor the evaluation after it can keep packed what is not packed."""
    if any(t.name.endswith("_blocks") for t in base.tensors):
        return
    wrong = [name for name, part in (("train", run.train), ("evaluate", run.evaluate)) if part.weights == "packed"]
    if wrong:
        remedy = " and ".join(f"set {name}.weights=bf16" for name in wrong)
        raise UnsupportedModel(f"{base.repo_id}: has no MXFP4 weights to keep packed; {remedy}")
