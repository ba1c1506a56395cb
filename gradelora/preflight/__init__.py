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
from gradelora.preflight.later import VERIFYING
from gradelora.preflight.plan import Plan, make_plan
from gradelora.trackers import check_trackers

# So many ways out are named in a refusal.
WAYS_NAMED = 3
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
    nodes = number_of_nodes(config.runtime)
    gpus, asked = plan.hardware.gpus, processes_on_each(config.train, nodes)
    if config.train.device == "cuda" and (asked > gpus or gpus == 0):
        remedy = (
            f"set train.processes={gpus * nodes}"
            if gpus
            else "rent a GPU, or set train.device=cpu and evaluate.device=cpu"
        )
        raise NotEnoughGpus(
            f"train.processes={config.train.processes} asks for {asked} GPUs"
            f"{f' on each of {nodes} nodes' if nodes > 1 else ''}, "
            f"{plan.hardware.name} has {gpus}; {remedy}"
        )
    for stage in (plan.memory, *plan.later):
        if not stage.fits:
            what = "training" if stage is plan.memory else f"its {stage.mode}"
            # Another way of training changes nothing in the model that is merged.
            way = MERGED_WAY if stage.mode == VERIFYING else ways_out(plan)
            raise NotEnoughMemory(
                f"{plan.memory.mode} on {plan.hardware.name}: {what} needs on {stage.device} {stage.spelled()}; {way}"
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


def _check_tools(config: RunConfig) -> None:
    """DeepSpeed compiles on first use; the services that are reported to need their packages."""
    check_trackers(config.runtime.report_to)
    missing = missing_tools()
    if missing and config.train.parallel != "layers":
        remedy = "pip install ninja, apt-get install g++"
        raise MissingTool(f"{' and '.join(missing)} not on PATH, and DeepSpeed compiles with them; {remedy}")


__all__ = ["Plan", "check", "make_plan", "preflight", "ways_out"]
