"""What only all files together show: questions, splits, and whether enough is left."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradelora.artifacts import SPLITS, SplitCounts
from gradelora.config import ValidateConfig
from gradelora.records.columns import Flags
from gradelora.records.identity import AnswerHashes, Questions
from gradelora.records.split import (
    TRAIN,
    UNSEEN_ANSWERS,
    UNSEEN_QUESTIONS,
    on_both_sides,
)
from gradelora.validate.codes import worst
from gradelora.validate.findings import DataSetFindings
from gradelora.validate.judge import Judge

# With fewer answers a held-out share of 0.2 is one answer or none.
FEW_ANSWERS = 10
MAJORITY_SHARE = 0.9
_WORDS = {
    "max_score_conflict": "with two maxima",
    "question_conflict": "whose question_id stands with two questions or rubrics",
    "split_leak": "with an answer in two splits",
    "few_answers": f"with fewer than {FEW_ANSWERS} answers",
    "constant_score": "with one score for all answers",
    "majority_class": f"with one score for {MAJORITY_SHARE:.0%} of the answers",
}


@dataclass(frozen=True)
class Kept:
    """Items that are not quarantined, in the order of the files: columns of n rows, texts left out.

    `leaking` marks those that stand on a more protected side too, `withheld` those that take no
    part for it: the same, or none where a leak blocks the run.
    """

    table: pa.Table
    questions: Questions
    keys: tuple[str, ...]
    hashes: AnswerHashes
    sides: NDArray[np.int8]
    leaking: NDArray[np.bool_]
    withheld: NDArray[np.bool_]

    @property
    def used_sides(self) -> NDArray[np.int8]:
        """Sides of the items that take part."""
        return self.sides[~self.withheld]


@dataclass(frozen=True)
class Whole:
    """Sums over everything that was read; `rows` are items and records without any."""

    rows: int
    quarantined: int
    records: int
    pii: dict[str, int]


def examine_whole(config: ValidateConfig, kept: Kept, whole: Whole, judge: Judge, names: list[str]) -> DataSetFindings:
    """What the judge finds in questions and data set, in sentences; `names` are the files'."""
    questions, single = check_questions(kept), check_whole(kept, whole, config)
    codes = {**judge.judge("data_set", single), **judge.judge("questions", questions)}
    return DataSetFindings(
        level=worst([judge.levels[code] for code in codes]),
        codes=codes,
        details={
            code: _explain(code, count, kept, whole, config) + _where(questions, code, kept, names)
            for code, count in codes.items()
        },
        records=whole.records,
        items=len(kept.used_sides),
        quarantined=whole.quarantined,
        withheld=int(kept.withheld.sum()),
        questions=len(kept.keys),
        splits=split_counts(kept.used_sides),
        pii=whole.pii,
        students_on_both_sides=students_on_both_sides(kept),
    )


def check_questions(kept: Kept) -> Flags:
    """Flags of questions (told apart by what they ask, not by maximum), bool[questions] each."""
    question = kept.questions.text_of_item
    size = int(question.max(initial=-1)) + 1
    answers = np.bincount(question, minlength=size)
    commonest = _commonest(question, kept.table["score"].to_numpy(), size)
    constant = (answers > 1) & (commonest == answers)
    blocking = kept.leaking & ~kept.withheld
    return {
        "max_score_conflict": _distinct(question, kept.table["max_score"].to_numpy(), size) > 1,
        "question_conflict": _texts(kept.table, question, size) > 1,
        "split_leak": np.bincount(question[blocking], minlength=size) > 0,
        "few_answers": answers < FEW_ANSWERS,
        "constant_score": constant,
        "majority_class": (answers >= FEW_ANSWERS) & ~constant & (commonest >= MAJORITY_SHARE * answers),
    }


def check_whole(kept: Kept, whole: Whole, config: ValidateConfig) -> Flags:
    """Flags of the data set as a whole, bool[1] each."""
    sizes = split_sizes(kept.used_sides)
    held_out = sizes[UNSEEN_ANSWERS] + sizes[UNSEEN_QUESTIONS]
    return {
        "too_many_quarantined": np.array([whole.quarantined > config.max_quarantined_share * whole.rows]),
        "no_rows_left": np.array([sizes[TRAIN] == 0 or held_out == 0]),
    }


def _explain(code: str, count: int, kept: Kept, whole: Whole, config: ValidateConfig) -> str:
    """One sentence of the measured numbers."""
    sizes = split_counts(kept.used_sides)
    if code == "too_many_quarantined":
        share = config.max_quarantined_share
        return f"{whole.quarantined} of {whole.rows} rows are quarantined, {share:.1%} allowed"
    if code == "no_rows_left":
        held_out = sizes.unseen_answers + sizes.unseen_questions
        return f"of {whole.rows} rows {sizes.train} are left to train on and {held_out} held out, 1 of each needed"
    return f"questions {_WORDS[code]}: {count}"


def _where(flags: Flags, code: str, kept: Kept, names: list[str]) -> str:
    """Where the first item of a flagged question stands; questions have no other name to print."""
    if code not in flags:
        return ""
    row = int(np.flatnonzero(flags[code][kept.questions.text_of_item])[0])
    at = {name: kept.table[name][row].as_py() for name in ("file", "record_index", "item_index")}
    return f" (the first in {names[at['file']]}, record {at['record_index']}, item {at['item_index']})"


def split_sizes(sides: NDArray[np.int8]) -> list[int]:
    """Items in each of SPLITS."""
    counts: list[int] = np.bincount(sides, minlength=len(SPLITS)).tolist()
    return counts


def split_counts(sides: NDArray[np.int8]) -> SplitCounts:
    """Items in each split, by name."""
    return SplitCounts(**dict(zip(SPLITS, split_sizes(sides), strict=True)))


def students_on_both_sides(kept: Kept) -> int:
    """Students with items in two of train, validation and unseen_answers; only named files can bring it about."""
    column = kept.table["student_id"].combine_chunks()
    if column.null_count == len(column):
        return 0
    codes = column.indices.fill_null(-1).to_numpy()
    counts = (codes >= 0) & ~kept.withheld & (kept.sides != UNSEEN_QUESTIONS)
    both = on_both_sides(codes[counts].astype(np.int64), kept.sides[counts])
    return len(np.unique(codes[counts][both]))


def _commonest(question: NDArray[np.int64], score: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Number of answers that have their question's commonest score, int[questions]."""
    most = np.zeros(size, dtype=np.int64)
    if size:
        _, codes = np.unique(score, return_inverse=True)
        span = int(codes.max()) + 1
        pairs, counts = np.unique(question * span + codes, return_counts=True)
        np.maximum.at(most, pairs // span, counts)
    return most


def _distinct(question: NDArray[np.int64], values: NDArray, size: int) -> NDArray[np.int64]:
    """Number of different values of each question, int[questions]."""
    if not size:
        return np.zeros(0, dtype=np.int64)
    _, codes = np.unique(values, return_inverse=True)
    span = int(codes.max()) + 1
    return np.bincount(np.unique(question * span + codes) // span, minlength=size)


def _texts(table: pa.Table, question: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Number of different (question, rubric) texts of each question, int[questions]."""
    if not size:
        return np.zeros(0, dtype=np.int64)
    texts, rubrics = (
        np.concatenate([c.indices.fill_null(-1).to_numpy() for c in table[name].chunks]).astype(np.int64)
        for name in ("question", "rubric")
    )
    return _distinct(question, texts * (int(rubrics.max()) + 2) + rubrics + 1, size)
