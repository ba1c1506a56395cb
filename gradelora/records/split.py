"""Which side an item is on.

The side is a function of the item alone, never of what else is in the data: an item cannot
change sides because others arrived, in whatever order.  The first of these that applies decides:

1. the file, where the configuration names it for a split;
2. the question, hashed: a share of the questions is unseen, with all their answers;
3. the student (`student_id`), hashed: whoever is held out is held out with all other answers;
4. without a student the answer, hashed as `identity.AnswerHashes.bag` sees it.

By 1 to 3 one answer can come to stand on two sides: two pupils write the same, an official test
file repeats a training answer.  A grader could then be praised for what it memorised (it reads
the answer, never the name).  So the side that is measured keeps the answer, and the items on
the less protected one are withheld (`withheld`): they take part in nothing.  Data that arrive
later can only withhold an item, not move it.

A similarity threshold (MinHash with connected components) could not be stable in this way: one
new answer can join two groups that are on different sides.  The bag takes its place: a key
that near-duplicates share.
"""

import fnmatch
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradelora.artifacts import SPLITS
from gradelora.config import SplitConfig
from gradelora.errors import BadData
from gradelora.records.identity import U64, hash64

# In the order of protection: what is measured last and most is protected most.
TRAIN, VALIDATION, UNSEEN_ANSWERS, UNSEEN_QUESTIONS = range(len(SPLITS))


@dataclass(frozen=True)
class Deciding:
    """What decides an item's side, columns of n rows.

    `keys` str[questions], `question` int[n] an index into it, `bag` the answer's hash, `student`
    a dictionary column of n rows, null for none, `named` int8[n] the side that the item's file
    is named for, or -1.
    """

    keys: tuple[str, ...]
    question: NDArray[np.int64]
    bag: U64
    student: pa.ChunkedArray
    named: NDArray[np.int8]


def named_sides(config: SplitConfig, names: list[str]) -> NDArray[np.int8]:
    """Index into SPLITS of every file that the configuration names for a split, else -1; int8[files].

    Raises BadData for a pattern without a file, and for a file that is named for two splits.
    """
    sides = np.full(len(names), -1, dtype=np.int8)
    for side in (VALIDATION, UNSEEN_ANSWERS, UNSEEN_QUESTIONS):
        for pattern in _patterns(config)[side]:
            field = f"validation.split.{SPLITS[side]}_files"
            found = [n for n, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
            if not found:
                raise BadData(f"{field}: {pattern} is none of the data files ({', '.join(names[:5])}); correct it")
            for n in found:
                if sides[n] not in (-1, side):
                    raise BadData(f"{field}: {names[n]} is named for {SPLITS[sides[n]]} too; name it once")
                sides[n] = side
    return sides


def _patterns(config: SplitConfig) -> dict[int, tuple[str, ...]]:
    return {
        VALIDATION: config.validation_files,
        UNSEEN_ANSWERS: config.unseen_answers_files,
        UNSEEN_QUESTIONS: config.unseen_questions_files,
    }


def assign(config: SplitConfig, items: Deciding) -> NDArray[np.int8]:
    """Index into SPLITS of every item, int8[n].  A split that has files takes no share of the others'."""
    shares = {
        VALIDATION: config.validation_share,
        UNSEEN_ANSWERS: config.unseen_answers_share,
        UNSEEN_QUESTIONS: config.unseen_questions_share,
    }
    shares |= {side: 0.0 for side, patterns in _patterns(config).items() if patterns}
    by_question = np.array([hash64(f"{config.seed}:question:{key}") / 2**64 for key in items.keys])
    unseen = by_question[items.question] < shares[UNSEEN_QUESTIONS]
    place = _places(config.seed, items)
    sides = np.full(len(place), TRAIN, dtype=np.int8)
    sides[place < shares[UNSEEN_ANSWERS] + shares[VALIDATION]] = VALIDATION
    sides[place < shares[UNSEEN_ANSWERS]] = UNSEEN_ANSWERS
    sides[unseen] = UNSEEN_QUESTIONS
    return np.where(items.named >= 0, items.named, sides).astype(np.int8)


def _places(seed: int, items: Deciding) -> NDArray[np.float64]:
    """A number in [0, 1) for every item: its student's, else its answer's; float64[n]."""
    salt = np.array([hash64(f"{seed}:answer:{key}") for key in items.keys], dtype=np.uint64)[items.question]
    by_answer = _mixed(items.bag ^ salt).astype(np.float64) / 2**64
    parts = [np.zeros(0)]
    for chunk in items.student.chunks:
        # A blank id names nobody; the last entry stands for null.
        known = [s if s and s.strip() else None for s in chunk.dictionary.to_pylist()] + [None]
        table = np.array([np.nan if s is None else hash64(f"{seed}:student:{s}") / 2**64 for s in known])
        parts.append(table[chunk.indices.fill_null(len(known) - 1).to_numpy()])
    by_student = np.concatenate(parts)
    return np.where(np.isnan(by_student), by_answer, by_student)


def withheld(sides: NDArray[np.int8], question: NDArray[np.int64], bag: U64) -> NDArray[np.bool_]:
    """Items that must take no part, bool[n], so that no answer and no unseen question is on two sides.

    Those whose answer to the same question (or one that differs in spelling or word order
    alone) also stands on a more protected side, and those whose question is an unseen one elsewhere.
    """
    if not len(sides):
        return np.zeros(0, dtype=bool)
    _, group = np.unique(answer_groups(question, bag), return_inverse=True)
    highest = np.full(group.max() + 1, -1, dtype=np.int8)
    np.maximum.at(highest, group, sides)
    unseen = np.zeros(question.max() + 1, dtype=bool)
    unseen[question[sides == UNSEEN_QUESTIONS]] = True
    found: NDArray[np.bool_] = (sides < highest[group]) | (unseen[question] & (sides != UNSEEN_QUESTIONS))
    return found


def _mixed(values: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def on_both_sides(group: U64 | NDArray[np.int64], sides: NDArray[np.int8]) -> NDArray[np.bool_]:
    """For every item, bool[n]: whether its group has items in more than one split."""
    if not len(group):
        return np.zeros(0, dtype=bool)
    _, code = np.unique(group, return_inverse=True)
    lowest = np.full(code.max() + 1, len(SPLITS), dtype=np.int8)
    highest = np.full(code.max() + 1, -1, dtype=np.int8)
    np.minimum.at(lowest, code, sides)
    np.maximum.at(highest, code, sides)
    return (lowest != highest)[code]


def answer_groups(question: NDArray[np.int64], answer: U64) -> U64:
    """One number for one answer to one question, uint64[n]."""
    with np.errstate(over="ignore"):
        return _mixed(_mixed(question.astype(np.uint64)) ^ answer)
