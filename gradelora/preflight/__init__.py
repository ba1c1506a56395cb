"""Refuse what cannot work before anything heavy is done: GPUs, memory, disk, tools.

Never cached: a measurement of this machine now is no artifact.
"""

from pathlib import Path

from gradelora.artifacts import BaseModel, DataFiles, Frozen
from gradelora.config import RunConfig
from gradelora.errors import MissingTool, NotEnoughDisk, NotEnoughGpus, NotEnoughMemory, UnsupportedModel
from gradelora.hardware import Hardware, missing_tools, this_machine
from gradelora.preflight.disk import DiskPlan, plan_disk
from gradelora.preflight.memory import MemoryPlan, plan_memory
from gradelora.preflight.size import ModelSize, size_of


class Plan(Frozen):
    """What the run will need, beside what there is."""

    hardware: Hardware
    size: ModelSize
    memory: MemoryPlan
    alternatives: tuple[MemoryPlan, ...]
    disk: tuple[DiskPlan, ...]


def make_plan(config: RunConfig, base: BaseModel, data: DataFiles, cache: Path, hardware: Hardware) -> Plan:
    """The plan of a run on `hardware`, whether it fits or not.  Raises UnsupportedModel."""
    if config.train.weights == "packed" and not any(t.name.endswith("_blocks") for t in base.tensors):
        raise UnsupportedModel(f"{base.repo_id}: has no MXFP4 weights to keep packed; set train.weights=bf16")
    size = size_of(base, config.train.lora)
    length = config.encode.max_length
    return Plan(
        hardware=hardware,
        size=size,
        memory=plan_memory(config.train, length, size, hardware),
        alternatives=_alternatives(config, size, hardware),
        disk=plan_disk(config, base, size, cache, data.total_bytes),
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
    if not plan.memory.fits:
        fitting = [a for a in plan.alternatives if a.fits]
        change = " or ".join(f"{a.mode}: {a.needed_bytes / 1e9:.0f} GB" for a in fitting[:2])
        remedy = f"these fit: {change}" if fitting else "reduce train.answers_per_row or take larger GPUs"
        raise NotEnoughMemory(f"{plan.memory.mode} needs on {plan.memory.device} {plan.memory.spelled()}; {remedy}")
    for disk in plan.disk:
        if not disk.fits:
            merge = " or merge.enabled=false" if config.merge.enabled else ""
            raise NotEnoughDisk(f"{disk.spelled()}; free some, or set store.root or runtime.hub_cache{merge}")


def _alternatives(config: RunConfig, size: ModelSize, hardware: Hardware) -> tuple[MemoryPlan, ...]:
    """The other modes and checkpointing, cheapest change first."""
    train = config.train
    on_gpu = train.device == "cuda"
    changes: list[dict[str, object]] = [{"gradient_checkpointing": True}]
    if size.expert_parameters:
        changes.append({"weights": "packed", "parallel": "zero2"})
    if on_gpu and hardware.gpus > 1:
        changes.append({"weights": "bf16", "parallel": "zero3"})
    changes.append({"weights": "bf16", "parallel": "layers", "processes": 1})
    plans = []
    for change in changes:
        for checkpointing in (False, True):
            other = train.model_copy(update={"gradient_checkpointing": checkpointing, **change})
            plan = plan_memory(other, config.encode.max_length, size, hardware)
            named = " with gradient_checkpointing=true" if other.gradient_checkpointing else ""
            plans.append(plan.model_copy(update={"mode": plan.mode + named}))
    return tuple({p.mode: p for p in plans}.values())


def _check_tools(config: RunConfig) -> None:
    """DeepSpeed compiles on first use."""
    missing = missing_tools()
    if missing and config.train.parallel != "layers":
        remedy = "pip install ninja, apt-get install g++"
        raise MissingTool(f"{' and '.join(missing)} not on PATH, and DeepSpeed compiles with them; {remedy}")
