"""What each lever of training is worth: CPU-seconds of one step with and without it.

    python -m bench.bench_train [--rounds N] [--vocab V]

The two sides of a lever take turns, so a busy machine slows both alike; the table shows the
median of each side, their ratio and the difference of their losses (which must be rounding).
A ratio below 1 is the price in time of a lever that saves memory.  Ends with exit code 1 where a
ratio falls below its floor, well under what was measured, or losses differ by more than rounding.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gradelora.config import LoraSettings
from gradelora.model import packed
from gradelora.model.adapter import attach
from gradelora.model.load import Weights, load_base
from gradelora.model.mxfp4 import dequantize
from gradelora.model.tree import Masking
from gradelora.rows import Items, Row
from gradelora.train.collate import IGNORED, RowCollator
from tests.tiny_models import save_gpt_oss

# The medians of real short-answer data: system, rubric and question; one answer; the target.
PREFIX, ANSWER, TARGET = 130, 45, 6
ANSWERS = 8
EXPERTS = 8
# Of the mean loss of a target token, about 12 with this vocabulary.
ROUNDING = 1e-4
Micro = tuple[tuple[Row, ...], ...]
SHARED: Micro = ((tuple(range(ANSWERS)),),)
SEPARATE: Micro = (tuple((i,) for i in range(ANSWERS)),)


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


def by_transformers(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """transformers' own dequantisation of the same bytes."""
    weights: torch.Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    return weights.to(dtype)


@dataclass(frozen=True)
class Side:
    """One way to do the step: forward and backward over all answers."""

    model: Any
    data: Items
    micro_batches: Micro = SHARED
    supervised_only: bool = True
    expert_chunk: int = 0
    checkpointing: bool = False
    keep_recomputed: bool = True
    dequantize: Callable[..., torch.Tensor] = dequantize

    def set_up(self) -> None:
        """Make the model work this way; the other side of the lever may share it."""
        base = self.model.base_model.model
        if self.checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": True})
            self.model.enable_input_require_grads()
        else:
            base.activation_checkpointing_disable()
        for module in self.model.modules():
            if isinstance(module, packed.PackedExperts):
                module.expert_chunk = self.expert_chunk
                module.keep_recomputed = self.checkpointing and self.keep_recomputed
        vars(packed)["dequantize"] = self.dequantize

    def step(self) -> float:
        """The summed loss of all targets."""
        collator = RowCollator(self.data, 0, Masking.of(self.model))
        self.model.zero_grad()
        total = 0.0
        for rows in self.micro_batches:
            batch = collator(rows)
            labels = batch.pop("shift_labels")
            keep = labels != IGNORED
            chosen = {"logits_to_keep": keep, "shift_labels": labels[keep]} if self.supervised_only else {}
            shift = chosen or {"shift_labels": labels}
            loss = self.model(**batch, **shift, num_items_in_batch=ANSWERS * TARGET).loss
            loss.backward()
            total += loss.item()
        return total


def measure(one: Side, other: Side, rounds: int) -> tuple[float, float, float]:
    """Median CPU-seconds of both, taking turns after one unmeasured turn each, and their losses' difference."""
    losses: list[list[float]] = [[], []]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            (one, other)[side].set_up()
            started = time.process_time()
            losses[side].append((one, other)[side].step())
            seconds[side].append(time.process_time() - started)
    on, off = (statistics.median(found[1:]) for found in seconds)
    return on, off, abs(losses[0][0] - losses[1][0])


@dataclass(frozen=True)
class Lever:
    """The step with and without it; `floor` is the least ratio without / with, well below what was measured."""

    name: str
    on: Side
    off: Side
    floor: float


def lost(name: str, ratio: float, floor: float, difference: float) -> str | None:
    """What is wrong with a lever: its effect is gone, or it changes the loss; None where it holds."""
    if ratio < floor:
        return f"{name}: {ratio:.2f} times the work without it, at least {floor} is expected"
    if not difference <= ROUNDING:
        return f"{name}: the losses differ by {difference:.1e}, more than rounding ({ROUNDING:.0e})"
    return None


def levers(shared: Side, plain: Side) -> tuple[Lever, ...]:
    """All of them; `plain` has its experts dequantised for good."""
    separate = replace(shared, micro_batches=SEPARATE)
    naive = replace(separate, supervised_only=False)
    checkpointed = replace(shared, checkpointing=True)
    theirs = replace(shared, dequantize=by_transformers)
    forgetful = replace(checkpointed, keep_recomputed=False)
    few = replace(shared, expert_chunk=EXPERTS // 4)
    return (
        Lever("logits at supervised positions only", separate, naive, 2.5),
        Lever(f"prefix shared by {ANSWERS} answers", shared, separate, 1.25),
        Lever("both", shared, naive, 4.0),
        Lever("experts unpacked by a table of byte pairs, not transformers' way", shared, theirs, 1.2),
        Lever("a recomputed layer's experts kept for its backward", checkpointed, forgetful, 0.95),
        Lever("experts packed, not dequantised for good (memory)", shared, plain, 0.5),
        Lever("gradient checkpointing (memory)", checkpointed, shared, 0.55),
        Lever(f"{EXPERTS // 4} of {EXPERTS} experts unpacked at a time (memory)", few, shared, 0.6),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=201_088, help="the real one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 512, "intermediate_size": 512, "head_dim": 32, "sliding_window": 128}
        shape |= {"num_hidden_layers": 8, "num_local_experts": EXPERTS}
        path = save_gpt_oss(Path(folder), vocab_size=options.vocab, initializer_range=0.05, **shape)
        data = items(options.vocab)
        shared, plain = Side(model_of(path, "packed"), data), Side(model_of(path, "bf16"), data)
        table = Table("lever", "with, CPU-s", "without, CPU-s", "without / with", "at least", "loss differs by")
        for lever in levers(shared, plain):
            on, off, difference = measure(lever.on, lever.off, options.rounds)
            figures = (f"{on:.3f}", f"{off:.3f}", f"{off / on:.2f}", f"{lever.floor:g}", f"{difference:.1e}")
            table.add_row(lever.name, *figures)
            fault = lost(lever.name, off / on, lever.floor, difference)
            faults += [fault] if fault else []
    Console(width=140).print(table)
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
