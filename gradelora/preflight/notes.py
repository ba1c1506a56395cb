"""What is to be said of a plan beside its figures: what is not sure in it, what is tight, where a budget ends."""

from collections.abc import Iterable, Iterator

from gradelora.artifacts import BaseModel
from gradelora.calibration import read_calibration
from gradelora.config import RunConfig
from gradelora.hardware import Hardware
from gradelora.preflight.clock import StageTime
from gradelora.preflight.memory import GB, MemoryPlan
from gradelora.preflight.size import KINDS, ModelSize

# What the doctor finds beyond the plan by so much is worth saying.
NEAR = 0.05


def architecture(base: BaseModel, size: ModelSize) -> Iterator[str]:
    """Where the formulas were never held against this kind of model, or lack a number of it."""
    kind = ", ".join(base.config.get("architectures") or ["an unknown architecture"])
    if size.assumed:
        bounds = ", ".join(size.assumed)
        yield f"{kind}: config.json does not say all that memory follows from; an upper bound with {bounds}"
    model_type = size.model_type
    if model_type not in KINDS:
        counted = f"{size.routed} of {size.experts} experts a token" if size.routed else "dense"
        known = ", ".join(sorted(KINDS))
        what = model_type or "its kind"
        yield f"{kind}: {what} was never measured ({known} were); planned as a transformer, {counted}"


def tightness(rows: Iterable[MemoryPlan], training: MemoryPlan) -> Iterator[str]:
    """What fits by less than the plan may be off."""
    for row in rows:
        if row.tight:
            what = "training" if row is training else row.mode
            sizes = f"{row.needed_bytes / GB:.1f} GB planned, {row.high_bytes / GB:.1f} at the worst"
            yield f"{what} is tight: {sizes}, {row.available_bytes / GB:.1f} there; see the other ways for room"


def measured_memory(run: RunConfig, here: bool) -> Iterator[str]:
    """Where the doctor's training took more on this kind of machine than the plan had said."""
    rates = read_calibration(run.store.root, run.train.device) if here else None
    if rates is not None and rates.step_memory_ratio is not None and rates.step_memory_ratio > 1 + NEAR:
        more = rates.step_memory_ratio - 1
        yield f"the doctor's training took {more:.0%} more memory here than planned: keep as much free"


def idle(run: RunConfig, hardware: Hardware) -> Iterator[str]:
    """GPUs that are paid for and do not train."""
    train = run.train
    if train.device == "cuda" and train.parallel != "layers" and train.processes < hardware.gpus:
        left = hardware.gpus - train.processes
        yield f"{left} of {hardware.gpus} GPUs do not train: train.processes={train.processes}"


def budget(run: RunConfig, times: Iterable[StageTime]) -> Iterator[str]:
    """Where a budget would end the training."""
    budget_s, training = run.runtime.budget_s, next((t for t in times if t.stage == "train"), None)
    if budget_s is None or training is None or training.high_s <= budget_s:
        return
    share = (
        f"about {budget_s / training.seconds:.0%} of it"
        if training.seconds > budget_s
        else "with bad luck before its end"
    )
    hours = f"{training.seconds / 3600:.1f} h ({training.low_s / 3600:.1f} to {training.high_s / 3600:.1f})"
    yield f"the budget stops training after {budget_s / 3600:.1f} h: {share}; the plan says {hours}"
