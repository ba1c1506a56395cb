"""Seconds of a stage from what it computes and moves, at rates that the doctor measured or data sheets bound.

An estimate is an interval: hardware reaches a part of its roofline, and which part is not known
before it was tried.
"""

from dataclasses import dataclass
from typing import NamedTuple

from gradelora.artifacts import BaseModel
from gradelora.calibration import Calibration, read_calibration
from gradelora.config import RunConfig
from gradelora.hardware import ROOFLINES, Hardware, Roofline, known_roofline
from gradelora.preflight import calibrated
from gradelora.preflight.known import SMALL_FILES_BYTES
from gradelora.preflight.size import ModelSize
from gradelora.preflight.workload import Workload

# Parts of a roofline that are reached: little with eager attention and small batches, more with large ones.
REACHED = (0.08, 0.2, 0.45)
# fp32 operations a core and second at a quarter of the GEMM peak (bench/bench_train.py's machine): slow, usual, fast.
CPU_OPERATIONS = (8e9, 30e9, 60e9)
# Bytes a second over the network with 8 connections; hosts cap each at some 25 MB/s (bench/bench_fetch.py).
NETWORK = (30e6, 180e6, 1000e6)
# Bytes a second of sha256 over what is in the cache already.
VERIFIED = (2e8, 3.5e8, 2e9)
# Bytes a CPU-second: records parsed and checked (bench/bench_validate.py); tokens encoded (bench/bench_encode.py).
VALIDATED, ENCODED = (5e6, 20e6, 60e6), (3e5, 2e6, 6e6)
# Bytes a second read from a local disk into a model, and copied and hashed by the merge (bench/bench_merge.py).
LOADED, MERGED = (4e8, 1.5e9, 4e9), (1e8, 3e8, 8e8)
# Seconds that imports, process groups and the like take.
STARTING_S = (5.0, 20.0, 90.0)
Triple = tuple[float, float, float]


class Estimate(NamedTuple):
    """Seconds (low, usual, high) and where they are known from."""

    seconds: Triple
    source: str


@dataclass(frozen=True)
class Job:
    """All that time depends on; `fetch_bytes` are still to be downloaded, the rest is in the Hub cache.

    `here`: the plan is for this machine, so that what was measured on it counts.
    """

    run: RunConfig
    base: BaseModel
    size: ModelSize
    work: Workload
    hardware: Hardware
    fetch_bytes: int
    here: bool


def estimates(job: Job) -> dict[str, Estimate]:
    """By stage, as far as the data is known: calibrated where the doctor has been, else from rooflines."""
    found = _rough(job)
    for label, seconds in calibrated_seconds(job).items():
        if label in found:
            found[label] = Estimate(seconds, "calibrated by doctor")
    return found


def calibrated_seconds(job: Job) -> dict[str, Triple]:
    """What the store's calibration of this kind of machine makes of the job; empty without one."""
    if not job.here:
        return {}
    train = read_calibration(job.run.store.root, job.run.train.device)
    evaluate = read_calibration(job.run.store.root, job.run.evaluate.device)
    found: dict[str, float | None] = {}
    if train is not None:
        found["train"] = calibrated.training_s(train, job.run.train, job.size, job.work)
        found |= _moved(job, train)
    if evaluate is not None:
        found["evaluate"] = calibrated.evaluation_s(evaluate, job.run, job.size, job.work, job.hardware)
    return {label: calibrated.interval(seconds) for label, seconds in found.items() if seconds is not None}


def _moved(job: Job, rates: Calibration) -> dict[str, float | None]:
    whole = sum(f.size for f in job.base.remote_files)
    return {
        "fetch everything": calibrated.fetching_s(rates, job.fetch_bytes, whole),
        "merge": calibrated.merging_s(rates, job.size.disk_bytes, job.size.merged_bytes(job.run.merge.dtype)),
    }


def _rough(job: Job) -> dict[str, Estimate]:
    work = job.work
    whole = sum(f.size for f in job.base.remote_files)
    network = "estimated: 30 to 1,000 MB/s of network"
    fetching = _sum(_rates(job.fetch_bytes, NETWORK), _rates(whole - job.fetch_bytes, VERIFIED, starting=False))
    small = _rates(min(job.fetch_bytes, SMALL_FILES_BYTES), NETWORK)
    merging = _rates(job.size.merged_bytes(job.run.merge.dtype), MERGED)
    found = {
        "fetch tokenizer": Estimate(small, network),
        "fetch everything": Estimate(fetching, network),
        "merge": Estimate(merging, "estimated: copy and hash at 0.1 to 0.8 GB/s"),
    }
    if work.data_bytes is not None:
        found["validate"] = Estimate(_rates(work.data_bytes, VALIDATED), "estimated: 5 to 60 MB/s")
    if work.items is not None:
        tokens = work.longest * (work.items + (work.held_out_items or 0))
        found["encode"] = Estimate(_rates(tokens, ENCODED), "estimated: 0.3 to 6 million tokens/s")
    if work.train_tokens is not None and work.micro_steps is not None:
        found["train"] = _training(job, work.computed_tokens(job.run.train), work.micro_steps)
    if work.held_out_tokens is not None:
        found["evaluate"] = _evaluation(job, work.held_out_tokens)
    return found


def _training(job: Job, tokens: int, micro_steps: int) -> Estimate:
    """Forward 2 operations an active weight and token, backward as many again: frozen weights have no gradient."""
    train, size = job.run.train, job.size
    passes = calibrated.training_passes(train)
    operations = calibrated.training_operations(train, size, job.work.row_tokens, tokens)
    load = _rates(size.disk_bytes, LOADED)
    if train.device == "cpu":
        cores = max(1.0, job.hardware.cores / train.processes)
        return Estimate(_sum(load, _reached(operations, CPU_OPERATIONS, cores)), _cores())
    line = roofline(job.hardware)
    computing = _reached(operations, REACHED, line.operations)
    # Every micro-step unpacks all experts in each pass: bytes read, looked up, written and read again.
    moved = micro_steps * passes * 8 * size.expert_parameters if train.weights == "packed" else 0
    gathered = micro_steps * passes * 2 * size.parameters if train.parallel == "zero3" else 0
    moving = _sum(_reached(moved, REACHED, line.memory_bytes), _reached(gathered, REACHED, line.link_bytes))
    return Estimate(_sum(load, _sum(computing, moving)), _part(job.hardware))


def _evaluation(job: Job, tokens: int) -> Estimate:
    """Base and adapter: two forward passes."""
    evaluate, size = job.run.evaluate, job.size
    operations = 2 * 2 * size.active_parameters * tokens
    load = _rates(size.disk_bytes, LOADED)
    if evaluate.device == "cpu":
        return Estimate(_sum(load, _reached(operations, CPU_OPERATIONS, job.hardware.cores)), _cores())
    line, processes = roofline(job.hardware), calibrated.evaluating(job.run, job.hardware)
    passes = calibrated.evaluation_passes(job.run, tokens, job.work.held_out_items or 0)
    moved = passes * 8 * size.expert_parameters if evaluate.weights == "packed" else 0
    computing = _reached(operations / processes, REACHED, line.operations)
    moving = _reached(moved / processes, REACHED, line.memory_bytes)
    return Estimate(_sum(load, _sum(computing, moving)), _part(job.hardware))


def roofline(hardware: Hardware) -> Roofline:
    """Of this GPU by its name; the slowest known where the name is not."""
    return known_roofline(hardware.gpu) or ROOFLINES["A100"]


def _part(hardware: Hardware) -> str:
    return f"estimated: {REACHED[0]:.0%} to {REACHED[2]:.0%} of {hardware.gpu or 'an A100'}'s roofline"


def _cores() -> str:
    return "estimated: 8 to 60 GFLOP/s a core"


def _rates(amount: float, rates: Triple, starting: bool = True) -> Triple:
    """Seconds (low, usual, high) at rates (slow, usual, fast)."""
    start = STARTING_S if starting else (0.0, 0.0, 0.0)
    return (amount / rates[2] + start[0], amount / rates[1] + start[1], amount / rates[0] + start[2])


def _reached(amount: float, parts: Triple, peak: float) -> Triple:
    return (amount / (parts[2] * peak), amount / (parts[1] * peak), amount / (parts[0] * peak))


def _sum(one: Triple, other: Triple) -> Triple:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])
