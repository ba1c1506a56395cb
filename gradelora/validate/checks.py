"""Rows checked as whole columns: one boolean flag a code and row."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradelora.config import ValidateConfig
from gradelora.records.columns import Flags, Rows
from gradelora.validate import patterns

Bools = NDArray[np.bool_]
# normalized_score is written to 2 places; the rest is for the float's own rounding.
NORM_TOLERANCE = 0.005 + 1e-9
SUM_TOLERANCE = 1e-9
_ITEM_TEXTS = ("question", "answer", "rubric", "question_id", "student_id", "group", "feedback")
_RECORD_TEXTS = ("feedback", "student_id", "group")
_NUMBER_FAULTS = ("type", "missing_field", "score_lt_0", "max_le_0", "item_score_gt_max")


def number(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A number column; NaN where it is null."""
    values: NDArray[np.float64] = table[name].to_numpy()
    return values


def matching(column: pa.ChunkedArray, pattern: str) -> Bools:
    """Rows whose text holds the pattern; null is no match.  A dictionary is searched once."""
    if pa.types.is_dictionary(column.type):
        parts = []
        for chunk in column.chunks:
            hit = pc.fill_null(pc.match_substring_regex(chunk.dictionary, pattern), False)
            hits = np.append(hit.to_numpy(zero_copy_only=False), False)
            parts.append(hits[chunk.indices.fill_null(len(hits) - 1).to_numpy()])
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
    if column.null_count == len(column):
        return np.zeros(len(column), dtype=bool)
    return np.asarray(pc.fill_null(pc.match_substring_regex(column, pattern), False).to_numpy(), dtype=bool)


def _any_match(table: pa.Table, names: tuple[str, ...], pattern: str) -> Bools:
    found = np.zeros(table.num_rows, dtype=bool)
    for name in names:
        found |= matching(table[name], pattern)
    return found


def check_items(items: Rows, config: ValidateConfig) -> Flags:
    """Flags of single items, bool[n] each, those of parsing included."""
    table = items.table
    score, top, second = (number(table, name) for name in ("score", "max_score", "rater2_score"))
    blank = matching(table["answer"], patterns.BLANK)
    nameless = matching(table["question"], patterns.BLANK)
    for row in np.flatnonzero(nameless).tolist():
        items.reasons.setdefault((row, "missing_field"), "question is blank")
    answers, said = table["answer"], ("answer", "feedback")
    length = pc.fill_null(pc.utf8_length(answers), 0).to_numpy()
    return {
        **items.flags,
        "missing_field": items.flags["missing_field"] | nameless,
        "score_lt_0": (score < 0) | (second < 0),
        "max_le_0": top <= 0,
        "item_score_gt_max": (top > 0) & ((score > top) | (second > top)),
        "blank_answer_nonzero_score": blank & (score != 0) & ~np.isnan(score),
        "blank_answer_zero_score": blank & (score == 0),
        "control_token_text": _any_match(table, ("question", "rubric", *said), patterns.CONTROL_TOKEN),
        "prompt_injection": matching(answers, patterns.PROMPT_INJECTION),
        "over_length": length > config.long_answer_chars,
    }


def own_control_chars(items: pa.Table) -> Bools:
    """Items with a control character in a text of their own, not in one of their record's."""
    return _any_match(items, _ITEM_TEXTS, patterns.CONTROL_CHAR)


def find_pii(items: pa.Table) -> Flags:
    """Items with personal data in answer or feedback, bool[n] by kind."""
    found = {kind: np.zeros(items.num_rows, dtype=bool) for kind in patterns.PII}
    for name in ("answer", "feedback"):
        # Most texts hold neither digit nor @: one search instead of three.
        possible = np.flatnonzero(matching(items[name], patterns.PII_HINT))
        texts = items[name].take(pa.array(possible))
        for kind, pattern in patterns.PII.items():
            found[kind][possible[matching(texts, pattern)]] = True
    return found


def check_records(records: Rows, items: Rows, item_flags: Flags) -> Flags:
    """Flags of whole records, bool[n] each, those of parsing included."""
    table = records.table
    score, top, norm = (number(table, name) for name in ("score", "max_score", "normalized_score"))
    unreadable = records.flags["type"] | records.flags["missing_field"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        off = np.abs(norm - score / top)
    total, complete = _item_sums(records, items, item_flags)
    has_items = table["n_items"].to_numpy() > 0
    # One wrong number is one finding: a sum says nothing beside a score that cannot be.
    summed = has_items & complete & (score >= 0) & (score <= top)
    return {
        **records.flags,
        "score_lt_0": score < 0,
        "max_le_0": top <= 0,
        "record_score_gt_max": (top > 0) & (score > top),
        "norm_mismatch": (top > 0) & (off > NORM_TOLERANCE),
        "no_items": ~has_items & ~unreadable,
        "items_sum_gt_record": summed & (total > score + SUM_TOLERANCE),
        "items_sum_lt_record": summed & (total < score - SUM_TOLERANCE),
        "control_char": _any_match(table, _RECORD_TEXTS, patterns.CONTROL_CHAR),
    }


def _item_sums(records: Rows, items: Rows, item_flags: Flags) -> tuple[NDArray[np.float64], Bools]:
    """Sum of each record's item scores, and whether every one of them can be believed."""
    row = items.table["record_row"].to_numpy()
    size = records.table.num_rows
    total = np.bincount(row, weights=np.nan_to_num(number(items.table, "score")), minlength=size)
    doubtful = np.logical_or.reduce([item_flags[code] for code in _NUMBER_FAULTS])
    complete: Bools = np.bincount(row[doubtful], minlength=size) == 0
    return total.astype(np.float64), complete


@dataclass(frozen=True)
class Repeats:
    """Items that repeat an earlier item, bool[n]: with its score, or with another one."""

    duplicate: Bools
    conflicting: Bools


def find_repeats(answer: NDArray[np.uint64], score: NDArray[np.float64], counts: Bools) -> Repeats:
    """Repeats among the items where `counts`; `answer` numbers one answer to one question.

    `duplicate`: the same answer with the same score stands before.  `conflicting`: every item
    of an answer that has two scores.
    """
    duplicate, conflicting = np.zeros(len(answer), dtype=bool), np.zeros(len(answer), dtype=bool)
    rows = np.flatnonzero(counts & ~np.isnan(score))
    if len(rows):
        _, group = np.unique(answer[rows], return_inverse=True)
        low, high = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
        np.minimum.at(low, group, score[rows])
        np.maximum.at(high, group, score[rows])
        conflicting[rows] = (low < high)[group]
        _, scores = np.unique(score[rows], return_inverse=True)
        _, first = np.unique(group * (scores.max() + 1) + scores, return_index=True)
        duplicate[rows] = True
        duplicate[rows[first]] = False
    return Repeats(duplicate, conflicting)
