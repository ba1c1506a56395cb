"""Seconds of a stage at the rates that `gradelora doctor --gpu` measured on this kind of machine.

A training is, on each rank: the way to its first step, a fixed part of every layer and micro-step,
unpacking or gathering of the weights, and its operations at the rate that a real step reached.
"""

from gradelora.calibration import Calibration
from gradelora.config import RunConfig, TrainConfig
from gradelora.hardware import Hardware
from gradelora.preflight.size import ModelSize
from gradelora.preflight.workload import Workload
from gradelora.scoring.passes import ANSWERS_PER_ROW, TOKENS_PER_ROW

# Rates of a small model are carried over to another, so much either way.
SPREAD = 1.8


def interval(seconds: float) -> tuple[float, float, float]:
    """(low, usual, high)."""
    return seconds / SPREAD, seconds, seconds * SPREAD


def training_passes(train: TrainConfig) -> int:
    """Forward and backward, and forward once more where activations are not kept."""
    return 3 if train.gradient_checkpointing else 2


def training_operations(train: TrainConfig, size: ModelSize, row_tokens: int, tokens: int) -> float:
    """Of one rank: 2 an active weight, token and pass, and the scores of attention, quadratic in a row."""
    passes = training_passes(train)
    weights = passes * 2 * size.active_parameters * tokens
    scores = passes * 2 * 2 * size.layers * size.heads * size.head_dim * row_tokens * tokens
    return (weights + scores) / train.processes


def training_s(rates: Calibration, train: TrainConfig, size: ModelSize, work: Workload) -> float | None:
    """None where the data or a rate is missing, or activations have another precision than those measured."""
    if work.train_tokens is None or work.micro_steps is None or rates.precision != train.precision:
        return None
    if not rates.step_operations_per_s or rates.layer_s is None or rates.starting_s is None:
        return None
    # A CPU's cores are shared by as many ranks as were measured; a GPU works for one.
    slower = train.processes / rates.ranks if train.device == "cpu" else 1.0
    operations = training_operations(train, size, work.row_tokens, work.computed_tokens(train))
    seconds = rates.starting_s + work.micro_steps * size.layers * rates.layer_s
    seconds += slower * operations / rates.step_operations_per_s
    if rates.cache_read_per_s:
        seconds += size.disk_bytes / rates.cache_read_per_s
    if train.weights == "packed" and rates.unpacked_per_s:
        seconds += slower * work.micro_steps * unpacking_s(rates.unpacked_per_s, train, size)
    if train.parallel == "zero3" and rates.all_reduce_bytes_per_s:
        width = 2 if train.precision == "bf16" else 4
        seconds += work.micro_steps * training_passes(train) * width * size.parameters / rates.all_reduce_bytes_per_s
    return seconds


def unpacking_s(unpacked_per_s: float, train: TrainConfig, size: ModelSize) -> float:
    """Of one micro-step: forward, backward, and once more where a recomputed layer is not kept."""
    times = 3 if train.gradient_checkpointing and train.expert_chunk else 2
    return times * size.expert_parameters / unpacked_per_s


def evaluating(run: RunConfig, hardware: Hardware) -> int:
    """Processes that evaluate side by side."""
    return run.runtime.evaluate_processes or (max(1, hardware.gpus) if run.evaluate.device == "cuda" else 1)


def evaluation_passes(run: RunConfig, tokens: int, answers: int) -> int:
    """Forward passes of base and adapter, over prefixes and over answers behind them, as scoring forms them."""
    rows = run.runtime.evaluate_rows
    return 4 * max(1, tokens // (TOKENS_PER_ROW * rows), -(-answers // (ANSWERS_PER_ROW * rows)))


def evaluation_s(
    rates: Calibration, run: RunConfig, size: ModelSize, work: Workload, hardware: Hardware
) -> float | None:
    """Base and adapter: two forward passes, at a training step's rate."""
    evaluate, tokens = run.evaluate, work.held_out_tokens
    if tokens is None or not rates.step_operations_per_s or rates.starting_s is None:
        return None
    if rates.precision != evaluate.precision:
        return None
    # A CPU's cores are shared by as many ranks as were measured; a GPU works for one.
    sharing = rates.ranks if evaluate.device == "cpu" else evaluating(run, hardware)
    seconds = rates.starting_s + 2 * 2 * size.active_parameters * tokens / (rates.step_operations_per_s * sharing)
    if rates.cache_read_per_s:
        seconds += size.disk_bytes / rates.cache_read_per_s
    if evaluate.weights == "packed" and rates.unpacked_per_s:
        seconds += (
            evaluation_passes(run, tokens, work.held_out_items or 0)
            * size.expert_parameters
            / (rates.unpacked_per_s * sharing)
        )
    return seconds


def fetching_s(rates: Calibration, missing_bytes: int, whole_bytes: int) -> float | None:
    """Download what is missing, hash what is there."""
    if not rates.network_bytes_per_s or not rates.hashed_per_s:
        return None
    return missing_bytes / rates.network_bytes_per_s + (whole_bytes - missing_bytes) / rates.hashed_per_s


def merging_s(rates: Calibration, read_bytes: int, written_bytes: int) -> float | None:
    """Read every byte of the base once; hash and write every byte of the merged model."""
    if not rates.cache_read_per_s or not rates.store_written_per_s or not rates.hashed_per_s:
        return None
    return read_bytes / rates.cache_read_per_s + written_bytes * (
        1 / rates.hashed_per_s + 1 / rates.store_written_per_s
    )
