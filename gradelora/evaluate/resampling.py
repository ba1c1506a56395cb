"""What is resampled, and the sums of each resample.

The items of one question share its rubric and its difficulty, those of one student a hand and a
style: they are no independent observations.  So whole questions are drawn (the cluster
bootstrap, Davison & Hinkley 1997, 3.8), and where students have several items each, students as
well: a question and a student cross in an item, so neither way alone sees all of the error.  A
record is one student's paper: it stands for the student where none is named.  Base, adapter and
second rater are read from the same resamples: a difference is paired.

Below MIN_UNITS questions there is nothing to resample; then students are, and the interval speaks
of these questions alone.

Of units of unequal size the large ones decide: `worth` says how many equal ones would be as many.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradelora.evaluate.agreement import Array

MIN_UNITS = 5
# Resamples are drawn in blocks of about this many numbers: 32 MB.  Four blocks are kept to be read
# again, and 64 of the small ones: questions and groups are many, with few students each.
BLOCK = 4_000_000
SMALL_BLOCK = BLOCK // 16
Unit = Literal["question", "student", "record"]
Person = Literal["student", "record"]
Codes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Units:
    """`unit` is what is resampled, `ways` its codes int64[N]; with `crossed` also by who answered and by both.

    Then `ways` are question, student or record, and the cell in which they meet.
    """

    unit: Unit
    ways: tuple[Codes, ...]
    crossed: Person | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of units of each way."""
        return tuple(int(codes.max()) + 1 if len(codes) else 0 for codes in self.ways)

    @property
    def crossed_units(self) -> int:
        """Number of students or records that are resampled beside the questions, else 0."""
        return self.counts[1] if self.crossed else 0

    def worth(self, chosen: "np.ndarray") -> float:
        """How many units of equal size the `chosen` items' are worth, in the way that has the fewest.

        (sum n)^2 / sum n^2 of n items a unit: with it as their number t errs no more often than it
        may, however unequal they are (Carter, Schnepel & Steigerwald 2017, "Asymptotic behavior of
        a t-test robust to cluster heterogeneity").
        """
        sizes = [np.bincount(codes[chosen]).astype(np.float64) for codes in self.ways[:2]]
        return min((float(n.sum() ** 2 / (n**2).sum()) for n in sizes if len(n)), default=0.0)


def units_of(questions: Sequence[str], records: Sequence[str], students: Sequence[int | None]) -> Units:
    """What to resample of N items; an item without a student counts as one of its record."""
    by_question = numbered(questions)
    person: Person = "student" if any(student is not None for student in students) else "record"
    people = [f"r {r}" if s is None else f"s {s}" for s, r in zip(students, records, strict=True)]
    by_student = numbered(people)
    if len(set(questions)) < MIN_UNITS:
        return Units(person, (by_student,))
    count = len(set(people))
    # With one item each, a student adds nothing that the item itself does not have.
    if not MIN_UNITS <= count < len(people):
        return Units("question", (by_question,))
    cells = numbered([f"{q} {p}" for q, p in zip(questions, people, strict=True)])
    return Units("question", (by_question, by_student, cells), crossed=person)


def draws(count: int, *, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of `count` units is drawn, in blocks [b, count] that add up to `resamples`.

    The same seed and count give the same draws.
    """
    if resamples * count <= BLOCK:
        kept = _kept_small if resamples * count <= SMALL_BLOCK else _kept
        yield kept(count, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        yield _drawn(rng, count, min(block, resamples - start))


def _only_block(count: int, resamples: int, seed: int) -> Array:
    """The only block; every figure, scorer and slice with as many units reads the same."""
    weights = _drawn(np.random.default_rng(seed), count, resamples)
    weights.flags.writeable = False
    return weights


_kept = functools.lru_cache(maxsize=4)(_only_block)
_kept_small = functools.lru_cache(maxsize=64)(_only_block)


def _drawn(rng: np.random.Generator, count: int, size: int) -> Array:
    drawn = rng.integers(0, count, size=(size, count))
    drawn += np.arange(size)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def sums_by(codes: Codes, terms: Array) -> Array:
    """Sums of `terms[N, C]` over the items of each code: [codes, C]."""
    sums = np.zeros((int(codes.max()) + 1 if len(codes) else 0, terms.shape[1]))
    np.add.at(sums, codes, terms)
    return sums


def resampled_sums(terms: Array, units: Codes, *, resamples: int, seed: int) -> Array:
    """Sums of `terms[N, C]` over items, units drawn with replacement: [B, C].

    `units[N]` numbers each item's unit from 0 without gaps.
    """
    by_unit = sums_by(units, terms)
    return np.concatenate([weights @ by_unit for weights in draws(len(by_unit), resamples=resamples, seed=seed)])


def resampled_by_question(
    terms: Array, questions: Codes, units: Codes, *, resamples: int, seed: int
) -> Iterator[Array]:
    """The same sums question by question, [b, Q, C] in blocks, under the same draws."""
    members = [np.flatnonzero(questions == q) for q in range(int(questions.max()) + 1)]
    count = int(units.max()) + 1
    for weights in draws(count, resamples=resamples, seed=seed):
        yield np.stack([weights[:, units[at]] @ terms[at] for at in members], axis=1)


def numbered(names: Sequence[str]) -> Codes:
    """Codes 0.. of names, by their order: int64[N]."""
    codes = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([codes[name] for name in names], dtype=np.int64)
