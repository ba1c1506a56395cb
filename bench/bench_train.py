"""What each lever of training is worth: CPU-seconds of one step with and without it.

    python -m bench.bench_train [--rounds N] [--vocab V]

The two sides of a lever take turns, so a busy machine slows both alike; the table shows the
median of each side, their ratio and the difference of their losses (which must be rounding).
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from gradelora.config import LoraSettings
from gradelora.model.adapter import attach
from gradelora.model.load import Weights, load_base
from gradelora.model.tree import Masking
from gradelora.rows import Items, Row
from gradelora.train.collate import IGNORED, RowCollator
from tests.tiny_models import save_gpt_oss

# The medians of real short-answer data: system, rubric and question; one answer; the target.
PREFIX, ANSWER, TARGET = 130, 45, 6
ANSWERS = 8
Step = Callable[[], float]


def items(vocab: int) -> Items:
    """One question with ANSWERS answers of about ANSWER tokens."""
    choose = random.Random(0)
    prefix = [choose.randrange(10, vocab) for _ in range(PREFIX)]
    rows = []
    for _ in range(ANSWERS):
        body = [choose.randrange(10, vocab) for _ in range(ANSWER + choose.randrange(-15, 16) + TARGET)]
        rows.append(prefix + body)
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return Items(
        ids=np.array([token for row in rows for token in row], dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prefix_lengths=np.full(ANSWERS, PREFIX, dtype=np.int32),
        prompt_lengths=lengths - TARGET,
        questions=("q",) * ANSWERS,
    )


def model_of(folder: Path, weights: Weights) -> Any:
    model = load_base(folder, weights=weights, precision="fp32", device="cpu")
    set_seed(0)
    return attach(model, LoraSettings(dropout=0.0)).train()


def step(model: Any, data: Items, micro_batches: list[list[Row]], supervised_only: bool) -> Step:
    """Forward and backward over all answers; the summed loss of their targets."""
    collator = RowCollator(data, 0, Masking.of(model))

    def run() -> float:
        model.zero_grad()
        total = 0.0
        for rows in micro_batches:
            batch = collator(rows)
            labels = batch.pop("shift_labels")
            keep = labels != IGNORED
            chosen = {"logits_to_keep": keep, "shift_labels": labels[keep]} if supervised_only else {}
            shift = chosen or {"shift_labels": labels}
            loss = model(**batch, **shift, num_items_in_batch=ANSWERS * TARGET).loss
            loss.backward()
            total += loss.item()
        return total

    return run


def measure(one: Step, other: Step, rounds: int) -> tuple[float, float, float]:
    """Median CPU-seconds of both, taking turns after one unmeasured turn each, and their losses' difference."""
    difference = abs(one() - other())
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            started = time.process_time()
            (one, other)[side]()
            seconds[side].append(time.process_time() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=201_088, help="the real one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 512, "intermediate_size": 512, "head_dim": 32, "sliding_window": 128}
        path = save_gpt_oss(
            Path(folder), vocab_size=options.vocab, num_hidden_layers=8, initializer_range=0.05, **shape
        )
        data = items(options.vocab)
        shared, separate = [[tuple(range(ANSWERS))]], [[(i,) for i in range(ANSWERS)]]
        packed, plain = model_of(path, "packed"), model_of(path, "bf16")
        levers = [
            (
                "logits at supervised positions only",
                step(packed, data, separate, True),
                step(packed, data, separate, False),
            ),
            (
                f"prefix shared by {ANSWERS} answers",
                step(packed, data, shared, True),
                step(packed, data, separate, True),
            ),
            ("both", step(packed, data, shared, True), step(packed, data, separate, False)),
            ("experts packed, not dequantised", step(packed, data, shared, True), step(plain, data, shared, True)),
        ]
        table = Table("lever", "with, CPU-s", "without, CPU-s", "without / with", "loss differs by")
        for name, one, other in levers:
            on, off, difference = measure(one, other, options.rounds)
            table.add_row(name, f"{on:.3f}", f"{off:.3f}", f"{off / on:.2f}", f"{difference:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
