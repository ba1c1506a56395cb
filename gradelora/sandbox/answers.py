"""Student answers composed from clauses that meet or miss the points of a rubric.

An answer's true score is the number of points that its clauses meet, so raters, base model
and adapter can be judged against something known.  All answers to a question have the same
number of clauses, so that length does not betray the score.  Standard library only, and the
same seed gives the same answers on every machine.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the sample asks, and what the tiny base is pretrained on: other subjects.
SAMPLE_QUESTIONS = Path(__file__).with_name("sample_questions.json")
CURRICULUM_QUESTIONS = Path(__file__).with_name("curriculum.json")
LEAST_CLAUSES = 3
WRONG_SHARE = 0.7  # of the missed points: a wrong clause; else one beside the point
TYPO_SHARE = 0.015  # of the longer words
WORDINGS = 6  # tried for each answer; the one nearest to a length drawn beforehand is kept


@dataclass(frozen=True)
class Point:
    """One line of a rubric and the clauses that earn it, half of it, or nothing."""

    rubric: str
    met: tuple[str, ...]
    half: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question whose score counts its points, in steps of 1 or 0.5."""

    question_id: str
    subject: str
    question: str
    step: float
    points: tuple[Point, ...]
    filler: tuple[str, ...]

    @property
    def max_score(self) -> int:
        """Every point is worth 1."""
        return len(self.points)

    @property
    def rubric(self) -> str:
        """The rubric as raters read it."""
        return "1 point each: " + "; ".join(point.rubric for point in self.points) + "."


@dataclass(frozen=True)
class Written:
    """An answer, what it truly earns, and the points (by index) that it does not fully meet."""

    text: str
    true_score: float
    open_points: tuple[int, ...]


def read_questions(path: Path) -> tuple[Question, ...]:
    """The questions of a JSON file (see sample_questions.json)."""
    return tuple(_question(entry) for entry in json.loads(path.read_text(encoding="utf-8")))


def _question(entry: dict[str, Any]) -> Question:
    points = (
        Point(p["rubric"], tuple(p["met"]), tuple(p.get("half", ())), tuple(p["missed"])) for p in entry["points"]
    )
    return Question(
        question_id=entry["question_id"],
        subject=entry["subject"],
        question=entry["question"],
        step=float(entry["step"]),
        points=tuple(points),
        filler=tuple(entry["filler"]),
    )


def write_answer(question: Question, knowledge: float, rng: random.Random) -> Written:
    """One answer of a student who meets a point with the probability `knowledge`."""
    worths = [_worth(point, knowledge, rng) for point in question.points]
    # Right and wrong clauses differ a little in length; a length drawn without regard to the score evens that out.
    length = max(LEAST_CLAUSES, len(worths)) * rng.uniform(46, 54)
    wordings = [_wording(question, worths, rng) for _ in range(WORDINGS)]
    clauses = min(wordings, key=lambda clauses: abs(sum(map(len, clauses)) - length))
    open_points = tuple(index for index, worth in enumerate(worths) if worth < 1)
    return Written(_spoken(clauses, rng), sum(worths), open_points)


def _wording(question: Question, worths: Sequence[float], rng: random.Random) -> list[str]:
    """Clauses of these worths, in any order: students do not follow that of the rubric."""
    filler = rng.sample(question.filler, len(question.filler))
    clauses = [_clause(point, worth, filler, rng) for point, worth in zip(question.points, worths, strict=True)]
    while len(clauses) < LEAST_CLAUSES:
        clauses.append(filler.pop())
    rng.shuffle(clauses)
    return clauses


def _worth(point: Point, knowledge: float, rng: random.Random) -> float:
    """1, 0.5 (where the point knows halves) or 0."""
    if point.half and rng.random() < 0.3:
        return 0.5
    return 1.0 if rng.random() < knowledge else 0.0


def _clause(point: Point, worth: float, filler: list[str], rng: random.Random) -> str:
    if worth == 1:
        return rng.choice(point.met)
    if worth > 0:
        return rng.choice(point.half)
    return rng.choice(point.missed) if rng.random() < WRONG_SHARE or not filler else filler.pop()


def _spoken(clauses: Sequence[str], rng: random.Random) -> str:
    """Clauses as a student writes them: in sentences, in one breath, or in a hurry."""
    clauses = [" ".join(_typed(word, rng) for word in clause.split()) for clause in clauses]
    manner = rng.random()
    if manner < 0.6:
        return " ".join(clause[0].upper() + clause[1:] + "." for clause in clauses)
    joined = clauses[0]
    for clause in clauses[1:]:
        joined += rng.choice((", ", " and ", ", and ", ". ")) + clause
    if manner < 0.8:
        return joined[0].upper() + joined[1:] + "."
    return joined.lower()


def _typed(word: str, rng: random.Random) -> str:
    """The word, now and then with two letters swapped."""
    if len(word) < 6 or rng.random() >= TYPO_SHARE:
        return word
    at = rng.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def rate(true_score: float, question: Question, noise: float, rng: random.Random) -> float:
    """What a rater gives: the true score, or with the probability `noise` one step beside it."""
    if rng.random() >= noise:
        return true_score
    beside = [s for s in (true_score - question.step, true_score + question.step) if 0 <= s <= question.max_score]
    return rng.choice(beside)
