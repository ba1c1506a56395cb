"""Which answers share a row, and which rank sees which row at which step.

The whole run is one list of rows, cut into optimizer steps, each step into micro-steps, each
micro-step into ranks.  Nothing is dropped: only the very last step is filled up, with empty rows.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradelora.config import TrainConfig

# Indices of the items in a row; all answer one question.  An empty row carries no label.
Row = tuple[int, ...]


@dataclass(frozen=True)
class Items:
    """One split: item i's ids are `ids[offsets[i]:offsets[i + 1]]`; lengths as in EncodedDataset."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    prefix_lengths: np.ndarray[Any, np.dtype[np.int32]]
    prompt_lengths: np.ndarray[Any, np.dtype[np.int32]]
    questions: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Items":
        """A split of an EncodedDataset."""
        from datasets import load_from_disk

        table = load_from_disk(str(folder)).data.table.combine_chunks()
        if table.num_rows == 0:
            none = np.zeros(0, dtype=np.int32)
            return cls(none, np.zeros(1, dtype=np.int64), none, none, ())
        ids = table["input_ids"].chunk(0)
        return cls(
            ids=ids.values.to_numpy(),
            offsets=ids.offsets.to_numpy().astype(np.int64),
            prefix_lengths=table["prefix_length"].to_numpy(),
            prompt_lengths=table["prompt_length"].to_numpy(),
            questions=tuple(table["question_key"].to_pylist()),
        )

    def __len__(self) -> int:
        return len(self.questions)

    def tokens(self, item: int) -> list[int]:
        """All ids of one item."""
        ids: list[int] = self.ids[self.offsets[item] : self.offsets[item + 1]].tolist()
        return ids

    def target(self, item: int) -> list[int]:
        """The ids that carry loss."""
        return self.tokens(item)[int(self.prompt_lengths[item]) :]

    def shared(self, row: Row) -> int:
        """Tokens that all items of the row begin with; each keeps at least one prompt token of its own."""
        lengths = [min(self.prefix_lengths[i], self.prompt_lengths[i] - 1) for i in row]
        return int(min(lengths))

    def row_tokens(self, row: Row) -> int:
        """Tokens that the row computes."""
        if not row:
            return 1
        shared = self.shared(row)
        return shared + sum(int(self.offsets[i + 1] - self.offsets[i]) - shared for i in row)

    def by_question(self) -> dict[str, list[int]]:
        """Items of every question, in the order of the split."""
        found: dict[str, list[int]] = {}
        for item, question in enumerate(self.questions):
            found.setdefault(question, []).append(item)
        return found


@dataclass(frozen=True)
class RowLimits:
    """At most so many answers in a row, and no further answer beyond so many tokens."""

    answers: int
    tokens: int


def rows_of(items: Items, questions: Mapping[str, Sequence[int]], most: RowLimits) -> list[Row]:
    """All items in rows within the limits; the rows of a question differ by one item at most."""
    rows: list[Row] = []
    for members in questions.values():
        number = math.ceil(len(members) / most.answers)
        edges = [round(i * len(members) / number) for i in range(number + 1)]
        for a, b in itertools.pairwise(edges):
            rows += _within(items, tuple(members[a:b]), most.tokens)
    return rows


def _within(items: Items, row: Row, tokens: int) -> list[Row]:
    """The row, halved until each part fits or is a single answer."""
    if len(row) == 1 or items.row_tokens(row) <= tokens:
        return [row]
    half = len(row) // 2
    return _within(items, row[:half], tokens) + _within(items, row[half:], tokens)


def epoch_rows(items: Items, most: RowLimits, seed: int, epoch: int) -> list[Row]:
    """One pass over all items, companions and order new in every epoch but fixed by the seed."""
    random = np.random.default_rng([seed, epoch])
    mixed = {q: random.permutation(members).tolist() for q, members in items.by_question().items()}
    rows = rows_of(items, mixed, most)
    return [rows[i] for i in random.permutation(len(rows))]


@dataclass(frozen=True)
class Schedule:
    """Rows of a whole run: `rows[step][micro_step][rank]` are the rows of one forward pass."""

    rows: tuple[tuple[tuple[tuple[Row, ...], ...], ...], ...]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.rows)

    def of_rank(self, rank: int) -> list[tuple[Row, ...]]:
        """The micro-batches of one rank, in order."""
        return [micro[rank] for step in self.rows for micro in step]

    def tokens(self, items: Items, step: int) -> int:
        """Tokens that all ranks compute in one step."""
        return sum(items.row_tokens(row) for micro in self.rows[step] for rank in micro for row in rank)


def schedule(rows: Sequence[Row], items: Items, *, ranks: int, accumulation: int, micro_rows: int) -> Schedule:
    """Cut rows into steps of ranks x accumulation x micro_rows; the last is filled up with empty rows.

    Within a step rows are sorted by length, so that ranks wait little and padding is small.
    """
    size = ranks * accumulation * micro_rows
    steps = []
    for first in range(0, len(rows), size):
        part = sorted(rows[first : first + size], key=items.row_tokens, reverse=True)
        part += [()] * (size - len(part))
        cut = [tuple(part[i : i + micro_rows]) for i in range(0, size, micro_rows)]
        steps.append(tuple(tuple(cut[m * ranks : (m + 1) * ranks]) for m in range(accumulation)))
    return Schedule(tuple(steps))


def limits(train: TrainConfig) -> RowLimits:
    """What bounds a row of training."""
    return RowLimits(answers=train.answers_per_row, tokens=train.tokens_per_row)


def schedule_of(train: TrainConfig, items: Items) -> Schedule:
    """The whole training, as the ranks do it and the plan counts it."""
    return plan_run(
        items,
        epochs=train.epochs,
        max_steps=train.max_steps,
        most=limits(train),
        seed=train.seed,
        ranks=train.processes,
        accumulation=train.accumulation,
        micro_rows=train.micro_batch_rows,
    )


def plan_run(
    items: Items,
    *,
    epochs: float,
    max_steps: int | None,
    most: RowLimits,
    seed: int,
    ranks: int,
    accumulation: int,
    micro_rows: int,
) -> Schedule:
    """The rows of `epochs` passes (the last may be a part), at most `max_steps` steps of them."""
    rows: list[Row] = []
    for epoch in range(math.ceil(epochs)):
        new = epoch_rows(items, most, seed, epoch)
        rows += new[: math.ceil(len(new) * min(1.0, epochs - epoch))]
    if max_steps is not None:
        rows = rows[: max_steps * ranks * accumulation * micro_rows]
    return schedule(rows, items, ranks=ranks, accumulation=accumulation, micro_rows=micro_rows)
