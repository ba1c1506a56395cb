"""A training on a small synthetic gpt-oss: the time of its steps and its peak memory, beside the plan's."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradelora import child
from gradelora.artifacts import EncodedDataset
from gradelora.calibration import Device, Precision
from gradelora.config import RunConfig, Runtime
from gradelora.config_file import build_config
from gradelora.doctor.synthetic import ANSWERS, REPO_ID, save_answers, save_model
from gradelora.errors import ChildFailed
from gradelora.hardware import this_machine
from gradelora.preflight.calibrated import training_operations, unpacking_s
from gradelora.preflight.estimate import Job, Triple, estimates
from gradelora.preflight.later import LOADING
from gradelora.preflight.measured import progress_lines, trained
from gradelora.preflight.modes import stages_of
from gradelora.preflight.size import ModelSize, size_of
from gradelora.preflight.workload import read_items, workload_of
from gradelora.rows import Items, schedule_of

STEPS = 11
# Of each kind, short and long, as many steps must lie behind the first, which warms up.
NEEDED = 3
SEEDS = 2000
ENOUGH = 6


@dataclass(frozen=True)
class Stepped:
    """What was measured beside what was planned; rates are those of one rank, None where noise hid them.

    `ended`: within the deadline; else its steps up to there are what is known.
    """

    planned_bytes: int
    peak_bytes: int
    planned_s: Triple
    seconds: float
    ended: bool
    short_s: float
    long_s: float
    short_tokens: int
    long_tokens: int
    starting_s: float | None
    operations_per_s: float | None
    layer_s: float | None


def measure_step(
    folder: Path, device: Device, precision: Precision, ranks: int, unpacked_per_s: float | None, deadline_s: float
) -> Stepped:
    """Train STEPS steps in `folder`, which is left to the caller.  Raises what gradelora.train raises."""
    from gradelora.train import train

    base, snapshot = save_model(folder / "model", device)
    data = save_answers(folder / "data", device, questions=STEPS * ranks)
    run = _configuration(folder, device, precision, ranks, data)
    size, work = size_of(base, run.train.lora), workload_of(run, None, data)
    machine = this_machine()
    training, *later = stages_of(run, work, size, machine)
    out = folder / "out"
    out.mkdir()
    started, runtime = time.monotonic(), Runtime(train_deadline_s=deadline_s)
    # A process of its own, so that what the ranks print is kept for their log.
    ended = _ended(lambda: child.call(train, run.train, snapshot, data, out=out, runtime=runtime), out)
    seconds, found = time.monotonic() - started, trained(out)
    assert found is not None, "a training without progress has ended in an error"
    loading = next(stage for stage in later if stage.mode == LOADING)
    job = Job(run, base, size, work, machine, fetch_bytes=0, here=False)
    short_s, long_s, (short_row, long_row) = _kinds(run, data, out)
    rates = fitted(run, size, (short_s, long_s), (short_row, long_row), unpacked_per_s)
    return Stepped(
        planned_bytes=max(training.process_bytes, loading.process_bytes),
        peak_bytes=found.peak_bytes,
        planned_s=estimates(job)["train"].seconds,
        seconds=seconds,
        ended=ended,
        short_s=short_s,
        long_s=long_s,
        short_tokens=short_row,
        long_tokens=long_row,
        starting_s=max(0.0, seconds - found.last_seconds) if ended else None,
        operations_per_s=rates[0] if rates else None,
        layer_s=rates[1] if rates else None,
    )


def _ended(work: Callable[[], Any], out: Path) -> bool:
    """Whether it came to its end.  At the deadline its steps so far tell enough, if there are some of both kinds."""
    try:
        work()
    except ChildFailed:
        found = trained(out)
        if found is None or found.steps < ENOUGH:
            raise
        return False
    return True


def fitted(
    run: RunConfig,
    size: ModelSize,
    seconds: tuple[float, float],
    rows: tuple[int, int],
    unpacked_per_s: float | None,
) -> tuple[float, float] | None:
    """(operations a second, fixed seconds a layer) from steps whose longest rows hold `rows` tokens.

    What a long step takes more than a short one is its further operations; what is left of a short
    one is fixed, the unpacking apart.  None where the long step took no longer.
    """
    # training_operations counts the tokens of all ranks.
    short, long = (training_operations(run.train, size, row, row * run.train.processes) for row in rows)
    if seconds[1] <= seconds[0]:
        return None
    rate = (long - short) / (seconds[1] - seconds[0])
    unpacking = unpacking_s(unpacked_per_s, run.train, size) if unpacked_per_s else 0.0
    return rate, max(0.0, seconds[0] - short / rate - unpacking) / size.layers


def _kinds(run: RunConfig, data: EncodedDataset, out: Path) -> tuple[float, float, tuple[int, int]]:
    """Median seconds of a short and of a long step, and the tokens of their longest rows."""
    longest = _longest_rows(run, read_items(data.path / "train"), run.train.seed)
    kinds = sorted(set(longest))
    times: dict[int, list[float]] = {kind: [] for kind in kinds}
    for line in progress_lines(out):
        # The first step also warms up.
        if "loss" in line and line["step"] > 1:
            times[longest[line["step"] - 1]].append(line["tokens"] / line["tokens_per_s"])
    return statistics.median(times[kinds[0]]), statistics.median(times[kinds[-1]]), (kinds[0], kinds[-1])


def _longest_rows(run: RunConfig, items: Items, seed: int) -> list[int]:
    """Tokens of the longest row of each step: the ranks wait for it."""
    schedule = schedule_of(run.train.model_copy(update={"seed": seed}), items)
    return [max(items.row_tokens(row) for rank in step[0] for row in rank) for step in schedule.rows]


def _configuration(folder: Path, device: Device, precision: Precision, ranks: int, data: EncodedDataset) -> RunConfig:
    """packed + zero2, one row a rank and step, with the first seed that mixes enough steps of both kinds."""
    values: dict[str, Any] = {
        "name": "doctor",
        "base": {"repo_id": REPO_ID},
        "data": {"files": ["none"]},
        "encode": {"layout": "harmony"},
        "evaluate": {"device": device, "precision": precision},
        "store": {"root": str(folder)},
        "train": {
            "device": device,
            "precision": precision,
            "processes": ranks,
            "answers_per_row": ANSWERS,
            "accumulation": 1,
            "epochs": 1,
            "max_steps": STEPS,
            "warmup_steps": 0,
            "save_every": 1,
            "evaluate_every": 1,
        },
    }
    run, items = build_config(values), read_items(data.path / "train")
    seed = next(_mixed(run, items), 0)
    return build_config(values, [f"train.seed={seed}"])


def _mixed(run: RunConfig, items: Items) -> Iterator[int]:
    for seed in range(SEEDS):
        longest = _longest_rows(run, items, seed)[1:]
        kinds = {min(longest), max(longest)}
        early = longest[: ENOUGH - 1]
        if len(kinds) == 2 and all(longest.count(kind) >= NEEDED and kind in early for kind in kinds):
            yield seed
