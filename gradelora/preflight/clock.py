"""Time and cost by stage: measured by earlier runs of this store, else estimated from rooflines.

An estimate is an interval: hardware reaches a part of its roofline, and which part is not known
before it was tried.  Measured rates come from receipts, so the second plan is better than the first.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradelora.artifacts import ASIDE, BaseModel, Frozen
from gradelora.config import RunConfig
from gradelora.hardware import ROOFLINES, Hardware, Roofline
from gradelora.preflight.known import SMALL_FILES_BYTES
from gradelora.preflight.size import ModelSize
from gradelora.preflight.workload import Workload
from gradelora.why import Foresight, Sealed, sorted_by_age

# What an earlier run on this machine did, the next does again within so much.
MEASURED_SPREAD = 1.3
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


class StageTime(Frozen):
    """Seconds of one stage with their interval, and where they are known from."""

    stage: str
    low_s: float
    seconds: float
    high_s: float
    source: str


@dataclass(frozen=True)
class Job:
    """All that time depends on; `fetch_bytes` are still to be downloaded, the rest is in the Hub cache."""

    run: RunConfig
    base: BaseModel
    size: ModelSize
    work: Workload
    hardware: Hardware
    fetch_bytes: int
    here: bool


def stage_times(job: Job, foresight: Foresight) -> tuple[StageTime, ...]:
    """Every stage of the run to come; 0 s for what is sealed already."""
    found = []
    for foreseen in foresight.stages:
        if foreseen.state == "cached":
            found.append(_time(foreseen.stage, (0, 0, 0), "sealed in the store"))
            continue
        estimate = _estimates(job).get(foreseen.stage)
        measured = _measured(job, foreseen.stage) if job.here else None
        if measured is not None:
            found.append(measured)
        elif estimate is not None:
            found.append(_time(foreseen.stage, *estimate))
    return tuple(found)


def total(times: tuple[StageTime, ...]) -> StageTime:
    """The sum: fetching may overlap with the data's own stages, so it is an upper one."""
    return StageTime(
        stage="all stages",
        low_s=sum(t.low_s for t in times),
        seconds=sum(t.seconds for t in times),
        high_s=sum(t.high_s for t in times),
        source="the sum of the above",
    )


def cost(seconds: float, price_per_hour: float) -> float:
    """Of the whole machine, in the price's currency."""
    return seconds / 3600 * price_per_hour


def _time(stage: str, seconds: Triple, source: str) -> StageTime:
    return StageTime(stage=stage, low_s=seconds[0], seconds=seconds[1], high_s=seconds[2], source=source)


def _rates(amount: float, rates: Triple, starting: bool = True) -> Triple:
    """Seconds (low, usual, high) at rates (slow, usual, fast)."""
    start = STARTING_S if starting else (0.0, 0.0, 0.0)
    return (amount / rates[2] + start[0], amount / rates[1] + start[1], amount / rates[0] + start[2])


def _estimates(job: Job) -> dict[str, tuple[Triple, str]]:
    work = job.work
    whole = sum(f.size for f in job.base.remote_files)
    network = "estimated: 30 to 1,000 MB/s of network"
    fetching = _sum(_rates(job.fetch_bytes, NETWORK), _rates(whole - job.fetch_bytes, VERIFIED, starting=False))
    found = {
        "fetch tokenizer": (_rates(min(job.fetch_bytes, SMALL_FILES_BYTES), NETWORK), network),
        "fetch everything": (fetching, network),
        "merge": (_rates(job.size.disk_bytes, MERGED), "estimated: copy and hash at 0.1 to 0.8 GB/s"),
    }
    if work.data_bytes is not None:
        found["validate"] = (_rates(work.data_bytes, VALIDATED), "estimated: 5 to 60 MB/s")
    if work.items is not None:
        tokens = work.longest * (work.items + (work.held_out_items or 0))
        found["encode"] = (_rates(tokens, ENCODED), "estimated: 0.3 to 6 million tokens/s")
    if work.train_tokens is not None and work.micro_steps is not None:
        found["train"] = _training(job, work.train_tokens, work.micro_steps)
    if work.held_out_tokens is not None:
        found["evaluate"] = _evaluation(job, work.held_out_tokens)
    return found


def _training(job: Job, tokens: int, micro_steps: int) -> tuple[Triple, str]:
    """Forward 2 operations an active weight and token, backward as many again: frozen weights have no gradient."""
    train, size = job.run.train, job.size
    passes = 3 if train.gradient_checkpointing else 2
    operations = passes * 2 * size.active_parameters * tokens / train.processes
    scores = passes * 2 * 2 * size.layers * size.heads * size.head_dim * job.work.row_tokens * tokens / train.processes
    load = _rates(size.disk_bytes, LOADED)
    if train.device == "cpu":
        cores = max(1.0, job.hardware.cores / train.processes)
        computing = _reached(operations + scores, CPU_OPERATIONS, cores)
        return _sum(load, computing), "estimated: 8 to 60 GFLOP/s a core"
    line = roofline(job.hardware)
    computing = _reached(operations + scores, REACHED, line.operations)
    # Every micro-step unpacks all experts in each pass: bytes read, looked up, written and read again.
    moved = micro_steps * passes * 8 * size.expert_parameters if train.weights == "packed" else 0
    gathered = micro_steps * passes * 2 * size.parameters if train.parallel == "zero3" else 0
    moving = _sum(_reached(moved, REACHED, line.memory_bytes), _reached(gathered, REACHED, line.link_bytes))
    return _sum(load, _sum(computing, moving)), f"estimated: {_part()} of {job.hardware.gpu or 'an A100'}'s roofline"


def _evaluation(job: Job, tokens: int) -> tuple[Triple, str]:
    """Base and adapter: two forward passes."""
    evaluate, size = job.run.evaluate, job.size
    operations = 2 * 2 * size.active_parameters * tokens
    load = _rates(size.disk_bytes, LOADED)
    if evaluate.device == "cpu":
        return _sum(load, _reached(operations, CPU_OPERATIONS, job.hardware.cores)), "estimated: 8 to 60 GFLOP/s a core"
    line = roofline(job.hardware)
    passes = 2 * max(1, tokens // (2048 * job.run.runtime.evaluate_rows))
    moved = passes * 8 * size.expert_parameters if evaluate.weights == "packed" else 0
    computing = _sum(_reached(operations, REACHED, line.operations), _reached(moved, REACHED, line.memory_bytes))
    return _sum(load, computing), f"estimated: {_part()} of {job.hardware.gpu or 'an A100'}'s roofline"


def roofline(hardware: Hardware) -> Roofline:
    """Of this GPU by its name; the slowest known where the name is not."""
    known = [line for name, line in ROOFLINES.items() if name in hardware.gpu]
    return known[0] if known else ROOFLINES["A100"]


def _part() -> str:
    return f"{REACHED[0]:.0%} to {REACHED[2]:.0%}"


def _reached(amount: float, parts: Triple, peak: float) -> Triple:
    return (amount / (parts[2] * peak), amount / (parts[1] * peak), amount / (parts[0] * peak))


def _sum(one: Triple, other: Triple) -> Triple:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def _measured(job: Job, label: str) -> StageTime | None:
    """The newest run of this stage here, by the amount of its work."""
    stage, _, part = label.partition(" ")
    for sealed in reversed(sorted_by_age(job.run.store.root, stage, part)):
        amounts = _amounts(job, stage, sealed)
        if amounts is None or not amounts[0]:
            continue
        fixed, then, now = amounts[1], amounts[0], amounts[2]
        seconds = fixed + max(0.0, sealed.receipt.seconds - fixed) * now / then
        source = f"measured here by {stage}/{sealed.receipt.key[:12]}"
        return _time(label, (seconds / MEASURED_SPREAD, seconds, seconds * MEASURED_SPREAD), source)
    return None


def _amounts(job: Job, stage: str, sealed: Sealed) -> tuple[float, float, float] | None:
    """(amount of work then, seconds that do not grow with it, amount now); None where the two do not compare."""
    artifact, work = sealed.receipt.artifact, job.work
    then_bytes = sum(f["size"] for f in artifact["files"])
    same_model = artifact.get("repo_id", job.base.repo_id) == job.base.repo_id
    if stage == "fetch":
        return (then_bytes, 0.0, min(then_bytes, job.fetch_bytes)) if same_model else None
    if stage == "validate" and work.data_bytes is not None:
        return _read_bytes(sealed.folder), 0.0, work.data_bytes
    if stage == "encode" and work.items is not None:
        then_items = artifact["splits"]["train"] + artifact["splits"]["unseen_answers"]
        return then_items, 0.0, work.items + (work.held_out_items or 0)
    if stage == "train" and same_model and work.train_tokens is not None:
        return _trained(job, sealed, work.train_tokens)
    if stage == "merge" and same_model:
        return then_bytes, 0.0, then_bytes
    if stage == "evaluate" and work.held_out_items:
        return artifact["items"], 0.0, work.held_out_items
    return None


def _trained(job: Job, sealed: Sealed, tokens: int) -> tuple[float, float, float] | None:
    """Tokens then, and the seconds before and after all steps; only for the same way of training."""
    now, then = job.run.train.model_dump(mode="json"), sealed.receipt.config
    names = ("weights", "parallel", "processes", "device", "precision", "gradient_checkpointing")
    if any(now[name] != then.get(name) for name in names):
        return None
    try:
        text = (sealed.folder / ASIDE / "progress.jsonl").read_text(encoding="utf-8")
        steps = [line for line in map(json.loads, text.splitlines()) if "tokens_per_s" in line]
        rate = statistics.median(line["tokens_per_s"] for line in steps)
        stepping: float = steps[-1]["seconds"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return rate * stepping, max(0.0, sealed.receipt.seconds - stepping), float(tokens)


def _read_bytes(folder: Path) -> float:
    try:
        findings: dict[str, Any] = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        return float(sum(source["size"] for source in findings["sources"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
