"""A batch of items to rows of ids.

What answers have in common is encoded once: the prefix of a question, the target of a score.
The ids go into one flat int32 array a split, from which Arrow's list column is made without
a copy: a list of Python integers a row would cost more than the tokenizer does.
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np
import pyarrow as pa

from gradelora.artifacts import Split
from gradelora.config import EncodeConfig
from gradelora.encode.dataset import FIELDS, SCHEMA
from gradelora.errors import TargetTooLong, UnsupportedModel
from gradelora.prompt.layout import Layout

# Entries of each cache; when full it is emptied, so that memory stays constant.
CACHED = 4096


def _ints() -> "array[int]":
    return array("i")


def _to_arrow(values: "array[int]") -> pa.Array:
    """int32 without a copy (`pa.array` would import pandas to ask whether it is one of its own)."""
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


@dataclass
class Rows:
    """Rows of one split in the making: `index` in the batch, ids end to end, lengths by row."""

    index: "array[int]" = field(default_factory=_ints)
    ids: "array[int]" = field(default_factory=_ints)
    ends: "array[int]" = field(default_factory=lambda: array("i", [0]))
    prefix_lengths: "array[int]" = field(default_factory=_ints)
    prompt_lengths: "array[int]" = field(default_factory=_ints)

    def append(self, index: int, prefix: "array[int]", answer: list[int], tail: "array[int]", target: int) -> None:
        """One row: prefix, answer, then `tail`, of which the last `target` ids are the target."""
        self.index.append(index)
        self.ids.extend(prefix)
        self.ids.fromlist(answer)
        self.ids.extend(tail)
        self.prefix_lengths.append(len(prefix))
        self.prompt_lengths.append(len(self.ids) - self.ends[-1] - target)
        self.ends.append(len(self.ids))

    def to_arrow(self, items: pa.RecordBatch) -> pa.RecordBatch:
        """With what is carried over from the items: schema SCHEMA."""
        made = {
            "input_ids": pa.ListArray.from_arrays(_to_arrow(self.ends), _to_arrow(self.ids)),
            "prefix_length": _to_arrow(self.prefix_lengths),
            "prompt_length": _to_arrow(self.prompt_lengths),
        }
        rows = _to_arrow(self.index)
        columns = [made[name] if name in made else items.column(name).take(rows) for name in FIELDS]
        return pa.record_batch(columns, schema=SCHEMA)


class Encoder:
    """Items to rows under one layout; answers that do not fit are written to `over_length`."""

    def __init__(self, layout: Layout, config: EncodeConfig, over_length: TextIO) -> None:
        self.layout, self.config, self.over_length = layout, config, over_length
        self._prefixes: dict[tuple[str, str | None, float], array[int]] = {}
        self._tails: dict[tuple[float, str | None], tuple[array[int], int]] = {}
        self._controls = np.zeros(1 + max(layout.text.controls.values()), dtype=np.bool_)
        self._controls[list(layout.text.controls.values())] = True
        constant = [*layout.opening, *layout.closing, *layout.target_opening, *layout.target_closing]
        self._controls_a_row = self._count_controls(np.array(constant, dtype=np.int32))

    def encode(self, items: pa.RecordBatch) -> dict[Split, pa.RecordBatch]:
        """Rows by split, in the order of the items; splits without rows are left out.

        Raises TargetTooLong, and UnsupportedModel should any text have become a control token.
        """
        texts = items.column("answer").to_pylist()
        answers = self.layout.answers(texts)
        splits: dict[Split, Rows] = {}
        names = items.column("split").to_pylist()
        columns = zip(names, self._batch_prefixes(items), answers, self._batch_tails(items), strict=True)
        for index, (split, prefix, answer, (tail, target)) in enumerate(columns):
            ids: list[int] | None = answer
            if len(prefix) + len(answer) + len(tail) > self.config.max_length:
                item_id = items.column("item_id")[index].as_py()
                ids = self._fitted(item_id, texts[index], len(answer), len(prefix) + len(tail))
            if ids is not None:
                if split not in splits:
                    splits[split] = Rows()
                splits[split].append(index, prefix, ids, tail, target)
        for rows in splits.values():
            self._prove_no_forged_control(rows)
        return {split: rows.to_arrow(items) for split, rows in splits.items()}

    def _batch_prefixes(self, items: pa.RecordBatch) -> Iterator["array[int]"]:
        """Each item's prefix.  Texts are compared as dictionary codes: few leave Arrow."""
        questions, rubrics = (items.column(name).dictionary_encode() for name in ("question", "rubric"))
        max_scores = items.column("max_score").to_pylist()
        known: dict[tuple[int, int | None, float], array[int]] = {}
        for code in zip(questions.indices.to_pylist(), rubrics.indices.to_pylist(), max_scores, strict=True):
            if code not in known:
                question, rubric, max_score = code
                known[code] = self._prefix(
                    questions.dictionary[question].as_py(),
                    None if rubric is None else rubrics.dictionary[rubric].as_py(),
                    max_score,
                )
            yield known[code]

    def _prefix(self, question: str, rubric: str | None, max_score: float) -> "array[int]":
        key = (question, rubric, max_score)
        if key not in self._prefixes:
            if len(self._prefixes) >= CACHED:
                self._prefixes.clear()
            self._prefixes[key] = array("i", self.layout.prefix(*key))
        return self._prefixes[key]

    def _batch_tails(self, items: pa.RecordBatch) -> Iterator[tuple["array[int]", int]]:
        """Each item's closing and target as one array, and the target's length."""
        scores = items.column("score").to_pylist()
        with_feedback = self.config.target == "score_and_feedback"
        feedbacks = items.column("feedback").to_pylist() if with_feedback else [None] * len(scores)
        for key in zip(scores, feedbacks, strict=True):
            if key not in self._tails:
                if len(self._tails) >= CACHED:
                    self._tails.clear()
                target = self.layout.target(*key)
                self._tails[key] = (array("i", [*self.layout.closing, *target]), len(target))
            yield self._tails[key]

    def _fitted(self, item_id: str, text: str, answer: int, others: int) -> list[int] | None:
        """The ids of an answer that is too long, shortened; None where it is set aside."""
        limit = self.config.max_length
        quarantined = self.config.over_length == "quarantine"
        ids = None if quarantined else self.layout.shorten(text, limit - others)
        if others > limit or (ids is None and not quarantined):
            needed = others if others > limit else others + self.layout.shortest
            raise TargetTooLong(
                f"{item_id}: instructions, question, maximum and target take {others} tokens, {needed} needed with "
                f"an answer, encode.max_length is {limit}; set encode.max_length={needed} or more"
            )
        action = "quarantined" if ids is None else "shortened"
        finding = {"item_id": item_id, "tokens": answer + others, "max_length": limit, "action": action}
        self.over_length.write(f"{json.dumps(finding)}\n")
        return ids

    def _prove_no_forged_control(self, rows: Rows) -> None:
        """Control ids are the format's own: as many in every row, whatever its text says."""
        found = self._count_controls(np.frombuffer(rows.ids, dtype=np.int32))
        if found != self._controls_a_row * len(rows.index):
            raise UnsupportedModel(
                f"{self.layout.text.where}: some text became a control token; use a base model with byte-level BPE"
            )

    def _count_controls(self, ids: np.ndarray) -> int:
        return int(self._controls[ids[ids < len(self._controls)]].sum())
