"""Which side an item is on.

The side is a function of (seed, question, answer) alone, never of what else is in the data:
an item cannot change sides because others arrived, in whatever order.  The unit is the
question's answer as `identity.AnswerHashes.bag` sees it, so answers that are the same, or the
same but for word order and the common misspellings, are always together.

Whole students (`student_id`) are NOT kept together, on purpose.  Two pupils who give the same
answer tie their whole work to each other; in real classes short answers tie almost everybody
into one component that cannot be split.  Cutting it would put one answer on both sides, which
a grader can memorise (it reads the answer, never the name); joining it late would move items
when data is appended.  A shared student is the smaller harm, and `findings.json` counts it.
Likewise a similarity threshold (MinHash with connected components) cannot be stable: one new
answer can join two groups that are on different sides.
"""

import fnmatch

import numpy as np
from numpy.typing import NDArray

from gradelora.artifacts import SPLITS
from gradelora.config import SplitConfig
from gradelora.errors import BadData
from gradelora.records.identity import U64, hash64

TRAIN, VALIDATION, UNSEEN_ANSWERS, UNSEEN_QUESTIONS = range(len(SPLITS))


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


def assign(
    config: SplitConfig, keys: tuple[str, ...], of_item: NDArray[np.int64], bag: U64, named: NDArray[np.int8]
) -> NDArray[np.int8]:
    """Index into SPLITS of every item, int8[n], from its question and its answer's bag hash.

    `named` int8[n] is the side that an item's file is named for, or -1.  A split that has
    files takes no share of the others'.
    """
    shares = {
        VALIDATION: config.validation_share,
        UNSEEN_ANSWERS: config.unseen_answers_share,
        UNSEEN_QUESTIONS: config.unseen_questions_share,
    }
    shares |= {side: 0.0 for side, patterns in _patterns(config).items() if patterns}
    by_question = np.array([hash64(f"{config.seed}:question:{key}") / 2**64 for key in keys])
    unseen = by_question[of_item] < shares[UNSEEN_QUESTIONS]
    salt = np.array([hash64(f"{config.seed}:answer:{key}") for key in keys], dtype=np.uint64)[of_item]
    place = _mixed(bag ^ salt).astype(np.float64) / 2**64
    sides = np.full(len(bag), TRAIN, dtype=np.int8)
    sides[place < shares[UNSEEN_ANSWERS] + shares[VALIDATION]] = VALIDATION
    sides[place < shares[UNSEEN_ANSWERS]] = UNSEEN_ANSWERS
    sides[unseen] = UNSEEN_QUESTIONS
    return np.where(named >= 0, named, sides).astype(np.int8)


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


def answer_groups(of_item: NDArray[np.int64], answer: U64) -> U64:
    """One number for one answer to one question, uint64[n]."""
    with np.errstate(over="ignore"):
        return _mixed(_mixed(of_item.astype(np.uint64)) ^ answer)
