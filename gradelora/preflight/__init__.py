"""Refuse what cannot work before anything heavy is done: GPUs, memory, disk, tools.

Never cached: a measurement of this machine now is no artifact.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from gradelora.artifacts import BaseModel, DataFiles
from gradelora.config import RunConfig
from gradelora.errors import MissingTool, NotEnoughDisk, NotEnoughGpus, NotEnoughMemory
from gradelora.hardware import missing_tools, this_machine
from gradelora.nodes import number_of_nodes, processes_on_each
from gradelora.preflight.kept import keep
from gradelora.preflight.later import HOST, MERGE, VERIFYING
from gradelora.preflight.modes import stages_of
from gradelora.preflight.plan import Plan, make_plan
from gradelora.trackers import check_trackers

# So many ways out are named in a refusal.
WAYS_NAMED = 3
LENGTH_STEP = 64
UNMERGED_WAY = "set merge.enabled=false and merge on a machine with more memory"
HOST_WAY = "take a machine with more memory for each GPU: neither rows nor modes need less on the host"
MERGED_WAY = "set merge.dtype=base, or merge.verify_items=0 and score the merged model elsewhere"


def preflight(
    config: RunConfig, base: BaseModel, data: DataFiles, cache: Path, on_plan: Callable[[Plan], None] = lambda _: None
) -> Plan:
    """The plan of a run on this machine, kept in the store; `on_plan` is told of it before it is judged.

    Raises MissingTool, NotEnoughGpus, NotEnoughMemory or NotEnoughDisk: measured against
    needed, with the change that would make it fit.
    """
    _check_tools(config)
    plan = make_plan(config, base, data, cache, this_machine())
    # A refused plan, too: its figures are the reason.  Of a disk that is full the check tells better.
    with contextlib.suppress(OSError):
        keep(config, plan)
    on_plan(plan)
    check(config, plan)
    return plan


def check(config: RunConfig, plan: Plan) -> None:
    """Raise the first refusal that the plan contains."""
    _check_gpus(config, plan)
    for stage in plan.counted:
        if not stage.fits:
            what = "training" if stage is plan.memory else f"its {stage.mode}"
            # Another way of training changes nothing in the model that is merged.
            way = {VERIFYING: MERGED_WAY, MERGE: UNMERGED_WAY, HOST: HOST_WAY}.get(stage.mode) or ways_out(config, plan)
            raise NotEnoughMemory(
                f"{plan.memory.mode} on {plan.hardware.name}: {what} needs on {stage.device} {stage.spelled()}; {way}"
            )
    for disk in plan.disk:
        if not disk.fits and not plan.elsewhere:
            merge = " or merge.enabled=false" if config.merge.enabled else ""
            raise NotEnoughDisk(f"{disk.spelled()}; free some, or set store.root or runtime.hub_cache{merge}")


def _check_gpus(config: RunConfig, plan: Plan) -> None:
    """Against those of this machine; a training that is sealed already needs none."""
    train, gpus, nodes = config.train, plan.hardware.gpus, number_of_nodes(config.runtime)
    uses = [s for s, stage in (("train", train), ("evaluate", config.evaluate)) if stage.device == "cuda"]
    uses = [stage for stage in uses if stage not in plan.sealed]
    if uses and gpus == 0:
        devices = " and ".join(f"{stage}.device=cpu" for stage in uses)
        raise NotEnoughGpus(f"{plan.hardware.name} has no GPU for {' and '.join(uses)}; rent one, or set {devices}")
    asked = processes_on_each(train, nodes)
    if "train" in uses and asked > gpus:
        fewer, steps = gpus * nodes, train.accumulation * train.processes
        remedy = f"`--set train.processes={fewer}"
        # As many answers an optimizer step as before, where that can be divided.
        remedy += f" --set train.accumulation={steps // fewer}`" if steps % fewer == 0 else "`"
        raise NotEnoughGpus(
            f"train.processes={train.processes} asks for {asked} GPUs"
            f"{f' on each of {nodes} nodes' if nodes > 1 else ''}, {plan.hardware.name} has {gpus}; add {remedy}"
        )


def ways_out(run: RunConfig, plan: Plan) -> str:
    """The changes that fit, the cheapest first, as the very options to add to the command."""
    fitting = [mode for mode in plan.alternatives if mode.fits]
    if not fitting:
        length = longest_that_fits(run, plan)
        larger = "larger or more GPUs" if run.train.device == "cuda" else "a machine with more memory"
        shorter = f"`--set encode.max_length={length}` does, or" if length else "nor do shorter texts help;"
        return f"no mode fits; {shorter} take {larger}"
    kinds = {mode.mode.partition(",")[0]: mode for mode in reversed(fitting)}
    # Each kind once before any kind twice.
    first = [mode for mode in fitting if mode in kinds.values()]
    named = [*first, *(mode for mode in fitting if mode not in first)][:WAYS_NAMED]
    ways = [
        f"`{m.options}` ({m.mode}: {m.tightest.needed_bytes / 1e9:.1f} of {m.tightest.available_bytes / 1e9:.1f} GB)"
        for m in named
    ]
    return "these fit, the cheapest change first: " + ", or ".join(ways)


def longest_that_fits(run: RunConfig, plan: Plan) -> int | None:
    """The largest encode.max_length below the configured one with which all stages fit; None where none does."""
    work, size, hardware = plan.work, plan.size, plan.hardware
    for length in range((run.encode.max_length - 1) // LENGTH_STEP * LENGTH_STEP, 0, -LENGTH_STEP):
        if work is None:
            break
        row = max(length, min(run.train.answers_per_row * length, run.train.tokens_per_row, work.row_tokens))
        shorter = work.model_copy(
            update={
                "row_tokens": row,
                "positions": min(work.positions, row),
                "longest": min(work.longest, length),
                "longest_branch": min(work.longest_branch, length),
            }
        )
        if all(stage.fits for stage in stages_of(run, shorter, size, hardware)):
            return length
    return None


def _check_tools(config: RunConfig) -> None:
    """DeepSpeed compiles on first use; the services that are reported to need their packages."""
    check_trackers(config.runtime.report_to)
    missing = missing_tools()
    if missing and config.train.parallel != "layers":
        remedy = "pip install ninja, apt-get install g++"
        raise MissingTool(f"{' and '.join(missing)} not on PATH, and DeepSpeed compiles with them; {remedy}")


__all__ = ["Plan", "check", "make_plan", "preflight", "ways_out"]
