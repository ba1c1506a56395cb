"""Refuse what cannot work before anything heavy is done: GPUs, memory, disk, tools.

Never cached: a measurement of this machine now is no artifact.
"""

from pathlib import Path

from gradelora.artifacts import BaseModel, DataFiles, EncodedDataset, Frozen
from gradelora.config import RunConfig
from gradelora.errors import MissingTool, NotEnoughDisk, NotEnoughGpus, NotEnoughMemory, UnsupportedModel
from gradelora.hardware import Hardware, missing_tools, this_machine
from gradelora.preflight.clock import Job, StageTime, stage_times
from gradelora.preflight.disk import DiskPlan, missing_bytes, plan_disk
from gradelora.preflight.memory import MemoryPlan
from gradelora.preflight.modes import Mode, modes_of, stages_of
from gradelora.preflight.size import ModelSize, size_of
from gradelora.preflight.workload import Workload, workload_of
from gradelora.why import Foreseen, foresee

# So many ways out are named in a refusal.
WAYS_NAMED = 3


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
        disk=plan_disk(run, base, size, cache, work, data.total_bytes if data else 0),
        work=work,
        stages=foresight.stages,
        times=stage_times(job, foresight),
        notes=_notes(base, size),
        elsewhere=elsewhere,
    )


def preflight(config: RunConfig, base: BaseModel, data: DataFiles, cache: Path) -> Plan:
    """The plan of a run on this machine.

    Raises MissingTool, NotEnoughGpus, NotEnoughMemory or NotEnoughDisk: measured against
    needed, with the change that would make it fit.
    """
    _check_tools(config)
    plan = make_plan(config, base, data, cache, this_machine())
    check(config, plan)
    return plan


def check(config: RunConfig, plan: Plan) -> None:
    """Raise the first refusal that the plan contains."""
    gpus, asked = plan.hardware.gpus, config.train.processes
    if config.train.device == "cuda" and (asked > gpus or gpus == 0):
        remedy = (
            f"set train.processes={gpus}" if gpus else "rent a GPU, or set train.device=cpu and evaluate.device=cpu"
        )
        raise NotEnoughGpus(f"train.processes={asked} asks for {asked} GPUs, {plan.hardware.name} has {gpus}; {remedy}")
    for stage in (plan.memory, *plan.later):
        if not stage.fits:
            what = "training" if stage is plan.memory else f"its {stage.mode}"
            raise NotEnoughMemory(
                f"{plan.memory.mode} on {plan.hardware.name}: {what} needs on {stage.device} {stage.spelled()}; "
                f"{ways_out(plan)}"
            )
    for disk in plan.disk:
        if not disk.fits and not plan.elsewhere:
            merge = " or merge.enabled=false" if config.merge.enabled else ""
            raise NotEnoughDisk(f"{disk.spelled()}; free some, or set store.root or runtime.hub_cache{merge}")


def ways_out(plan: Plan) -> str:
    """The changes that fit, the cheapest first, as the very options to add to the command."""
    fitting = [mode for mode in plan.alternatives if mode.fits]
    if not fitting:
        return "no mode fits; lower encode.max_length or train.tokens_per_row, or take larger or more GPUs"
    kinds = {mode.mode.partition(",")[0]: mode for mode in reversed(fitting)}
    # Each kind once before any kind twice.
    first = [mode for mode in fitting if mode in kinds.values()]
    named = [*first, *(mode for mode in fitting if mode not in first)][:WAYS_NAMED]
    ways = [
        f"`{m.options}` ({m.mode}: {m.tightest.needed_bytes / 1e9:.1f} of {m.tightest.available_bytes / 1e9:.1f} GB)"
        for m in named
    ]
    return "these fit, the cheapest change first: " + ", or ".join(ways)


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


def _check_tools(config: RunConfig) -> None:
    """DeepSpeed compiles on first use."""
    missing = missing_tools()
    if missing and config.train.parallel != "layers":
        remedy = "pip install ninja, apt-get install g++"
        raise MissingTool(f"{' and '.join(missing)} not on PATH, and DeepSpeed compiles with them; {remedy}")
