"""Time and cost by stage: measured by earlier runs, calibrated by the doctor, else estimated from rooflines."""

from gradelora.artifacts import Frozen
from gradelora.preflight.earlier import measured
from gradelora.preflight.estimate import Estimate, Job, estimates
from gradelora.why import Foresight

# What an earlier run on this machine did, the next does again within so much.
MEASURED_SPREAD = 1.3


class StageTime(Frozen):
    """Seconds of one stage with their interval, and where they are known from."""

    stage: str
    low_s: float
    seconds: float
    high_s: float
    source: str


def stage_times(job: Job, foresight: Foresight) -> tuple[StageTime, ...]:
    """Every stage of the run to come; 0 s for what is sealed already."""
    found = []
    estimated = estimates(job)
    for foreseen in foresight.stages:
        label = foreseen.stage
        if foreseen.state == "cached":
            found.append(_time(label, Estimate((0, 0, 0), "sealed in the store")))
            continue
        earlier = measured(job, label) if job.here else None
        if earlier is not None:
            seconds, key = earlier
            triple = (seconds / MEASURED_SPREAD, seconds, seconds * MEASURED_SPREAD)
            found.append(_time(label, Estimate(triple, f"measured here by {key}")))
        elif label in estimated:
            found.append(_time(label, estimated[label]))
    return tuple(found)


def total(times: tuple[StageTime, ...], unknown: bool = False) -> StageTime:
    """The sum: fetching may overlap with the data's own stages, so it is an upper one of those that are known."""
    return StageTime(
        stage="those above" if unknown else "all stages",
        low_s=sum(t.low_s for t in times),
        seconds=sum(t.seconds for t in times),
        high_s=sum(t.high_s for t in times),
        source="the sum of the above",
    )


def cost(seconds: float, price_per_hour: float) -> float:
    """Of the whole machine, in the price's currency."""
    return seconds / 3600 * price_per_hour


def _time(stage: str, estimate: Estimate) -> StageTime:
    low, usual, high = estimate.seconds
    return StageTime(stage=stage, low_s=low, seconds=usual, high_s=high, source=estimate.source)
