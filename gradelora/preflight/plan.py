"""The plan: what a run will need in memory, disk, time and money, beside what there is."""

from pathlib import Path

from gradelora.artifacts import BaseModel, DataFiles, EncodedDataset, Frozen
from gradelora.config import RunConfig
from gradelora.errors import UnsupportedModel
from gradelora.hardware import Hardware
from gradelora.preflight.clock import StageTime, stage_times
from gradelora.preflight.disk import DiskPlan, missing_bytes, plan_disk
from gradelora.preflight.estimate import Job
from gradelora.preflight.later import runs
from gradelora.preflight.memory import MemoryPlan
from gradelora.preflight.modes import Mode, modes_of, stages_of
from gradelora.preflight.notes import architecture, budget, idle, measured_memory, tightness
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

    @property
    def sealed(self) -> frozenset[str]:
        """Stages that the run takes from the store."""
        return frozenset(f.stage for f in self.stages if f.state == "cached")

    @property
    def counted(self) -> tuple[MemoryPlan, ...]:
        """Memory of the stages that will run."""
        return tuple(row for row in (self.memory, *self.later) if runs(row, self.sealed))


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
    sealed = [f.stage for f in foresight.stages if f.state == "cached"]
    missing = missing_bytes(base, cache)
    job = Job(run, base, size, work, hardware, fetch_bytes=missing, here=not elsewhere)
    plan = Plan(
        hardware=hardware,
        size=size,
        memory=memory,
        later=tuple(later),
        alternatives=modes_of(run, work, size, hardware, sealed),
        disk=plan_disk(run, base, size, cache, work, data.total_bytes if data else 0, foresight),
        work=work,
        stages=foresight.stages,
        times=stage_times(job, foresight),
        elsewhere=elsewhere,
    )
    notes = (
        *architecture(base, size),
        *tightness(plan.counted, plan.memory),
        *measured_memory(run, not elsewhere),
        *idle(run, hardware),
        *budget(run, plan.times),
    )
    return plan.model_copy(update={"notes": notes})


def _check_packed(run: RunConfig, base: BaseModel) -> None:
    """Neither training nor the evaluation after it can keep packed what is not packed."""
    if any(t.name.endswith("_blocks") for t in base.tensors):
        return
    wrong = [name for name, part in (("train", run.train), ("evaluate", run.evaluate)) if part.weights == "packed"]
    if wrong:
        remedy = " and ".join(f"set {name}.weights=bf16" for name in wrong)
        raise UnsupportedModel(f"{base.repo_id}: has no MXFP4 weights to keep packed; {remedy}")
