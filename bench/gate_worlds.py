"""Simulated evaluations: scorers of known quality on questions and students that differ.

A question has its own maximum and difficulty, a student an ability where students matter.  The human
score of an answer is its true quality plus noise, cut into points.  A scorer does the same with its
own noise, in every question with its own bias and precision, and towards every student with its own
bias: that is what makes answers of one question, and those of one student, dependent.  Base and
adapter are drawn alike where they are equally good; a real gain is an adapter with less noise, as
much less as moves QWK so far over many questions.  Equally good scorers still differ in a single
question, unless questions are `alike`; in a ruined one the adapter scores at random.
"""

import functools
from dataclasses import dataclass

import numpy as np

from gradelora.evaluate import agreement
from gradelora.evaluate.items import Items
from gradelora.evaluate.predictions import Prediction
from gradelora.evaluate.resampling import sums_by

RATER_NOISE = 0.35
QUESTION_BIAS_SD = 0.25
STUDENT_BIAS_SD = 0.4
PRECISION_SD = 0.3
BASE_NOISE = 0.9
ABILITY_SD = 0.6
RANDOM_SD = 1.2


@dataclass(frozen=True)
class World:
    """`sizes[Q]` of `students` answer each question; `matter`: answers of one depend; `named`: the data say whose.

    `alike`: a scorer is as good in one question as in another; `ruined`: in how many the adapter scores at random.
    """

    sizes: tuple[int, ...]
    students: int
    matter: bool
    named: bool
    alike: bool = False
    ruined: int = 0

    @property
    def name(self) -> str:
        """As the table shows it."""
        low, high = min(self.sizes), max(self.sizes)
        if low == high:
            return f"{len(self.sizes)} x {low}"
        if self.sizes.count(low) == len(self.sizes) - 1:
            return f"1 x {high}, {len(self.sizes) - 1} x {low}"
        return f"{len(self.sizes)} x {low} to {high}"


@dataclass(frozen=True)
class Drawn:
    """One simulated evaluation, a column an answer [N], in points; `student` and `question` by number."""

    question: np.ndarray
    student: np.ndarray
    maximum: np.ndarray
    human: np.ndarray
    base: np.ndarray
    adapter: np.ndarray


def even(questions: int, students: int, matter: bool, named: bool) -> World:
    """Every student answers every question."""
    return World((students,) * questions, students, matter, named)


def scored(rng: np.random.Generator, quality_QS: np.ndarray, noise: float, world: World) -> np.ndarray:
    """A scorer's view of the true quality [Q, S] before it is cut into points."""
    questions, students = quality_QS.shape
    of_question = (not world.alike) * rng.normal(0, QUESTION_BIAS_SD, (questions, 1))
    bias = of_question + world.matter * rng.normal(0, STUDENT_BIAS_SD, (1, students))
    spread = noise * np.exp((not world.alike) * rng.normal(0, PRECISION_SD, (questions, 1)))
    return quality_QS + bias + spread * rng.standard_normal(quality_QS.shape)


def draw(seed: int, world: World, adapter_noise: float) -> Drawn:
    """One evaluation; the answers of a question are those of as many students, taken at random."""
    rng, questions, students = np.random.default_rng(seed), len(world.sizes), world.students
    maximum = rng.integers(2, 6, (questions, 1))
    difficulty = rng.normal(0, 0.5, (questions, 1))
    shared = ABILITY_SD * world.matter
    ability = rng.normal(0, shared, (1, students))
    rest = np.sqrt(1 - shared**2) * rng.standard_normal((questions, students))
    quality = rest + ability + difficulty

    def points(view: np.ndarray) -> np.ndarray:
        return np.clip(np.round((view / 4 + 0.5) * maximum), 0, maximum)

    human = points(quality + RATER_NOISE * rng.standard_normal(quality.shape))
    base, adapter = (points(scored(rng, quality, noise, world)) for noise in (BASE_NOISE, adapter_noise))
    took = np.array([rng.permutation(students) < size for size in world.sizes])
    # The last draw: the other questions are those of the same world without a ruined one.
    at_random = points(rng.normal(0, RANDOM_SD, quality.shape))
    adapter[: world.ruined] = at_random[: world.ruined]
    question, student = np.nonzero(took)
    return Drawn(question, student, maximum[question, 0], human[took], base[took], adapter[took])


def true_gain(adapter_noise: float, matter: bool) -> float:
    """QWK of the adapter less that of the base over many questions and students."""
    drawn = draw(0, even(1500, 300, matter, named=False), adapter_noise)
    return float(qwk_gain(terms(drawn.human, drawn.base, drawn.adapter, np.ones(len(drawn.human))).sum(0)))


def true_loss(adapter_noise: float) -> float:
    """What the adapter loses in a ruined question, the mean over many with many students."""
    world = World((300,) * 400, 300, matter=False, named=False, ruined=400)
    drawn = draw(0, world, adapter_noise)
    both = terms(drawn.human, drawn.base, drawn.adapter, np.ones(len(drawn.human)))
    return -float(np.mean(qwk_gain(sums_by(drawn.question, both))))


@functools.cache
def noise_of(gain: float, matter: bool) -> float:
    """The adapter's noise that makes a true gain, by bisection."""
    low, high = 0.0, BASE_NOISE
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if true_gain(middle, matter) > gain else (low, middle)
    return (low + high) / 2


def terms(human: np.ndarray, base: np.ndarray, adapter: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The sums' terms that QWK reads, of both scorers side by side: [N, 2 C]."""
    return np.hstack([agreement.moments(human, view, step)[:, : agreement.QWK_COLUMNS] for view in (base, adapter)])


def qwk_gain(sums: np.ndarray) -> np.ndarray:
    """QWK of the adapter less that of the base, from sums [..., 2 C]."""
    base, adapter = np.split(sums, 2, axis=-1)
    return agreement.qwk(adapter) - agreement.qwk(base)


def columns(drawn: Drawn, world: World, chosen: np.ndarray) -> Items:
    """The `chosen` answers as the evaluate stage measures them."""
    students = drawn.student[chosen].tolist()
    return Items(
        questions=tuple(f"q{q:03}" for q in drawn.question[chosen]),
        records=tuple(map(str, students)),
        students=tuple(students) if world.named else (None,) * len(students),
        human=drawn.human[chosen],
        rater2=np.full(len(students), np.nan),
        base=drawn.base[chosen],
        adapter=drawn.adapter[chosen],
        step=np.ones(len(students)),
        labels=(),
    )


def predictions(seed: int, world: World, adapter_noise: float) -> list[Prediction]:
    """One simulated evaluation as the stage would write it."""
    drawn, made = draw(seed, world, adapter_noise), []
    for i, (q, s) in enumerate(zip(drawn.question.tolist(), drawn.student.tolist(), strict=True)):
        views = {}
        for name, score in (("base", drawn.base[i]), ("adapter", drawn.adapter[i])):
            views |= {f"{name}_score": score, f"{name}_expected": score, f"{name}_confidence": 1.0}
            views |= {f"{name}_mass": 1.0, f"{name}_greedy": score, f"{name}_log_probabilities": ()}
        made.append(
            Prediction(
                item_id=f"{s}:{q}",
                record_id=f"{s}",
                question_key=f"q{q:03}",
                split="unseen_answers",
                student=s if world.named else None,
                group=None,
                score=drawn.human[i],
                max_score=drawn.maximum[i],
                rater2_score=None,
                step=1.0,
                scores=tuple(float(score) for score in range(int(drawn.maximum[i]) + 1)),
                **views,
            )
        )
    return made


ONE_LARGE = ((400, *(20,) * 19), 400)
SPREAD = (tuple(np.linspace(3, 58, 20).astype(int).tolist()), 60)
WORLDS = (
    even(10, 14, matter=False, named=False),
    even(20, 20, matter=False, named=False),
    even(10, 14, matter=True, named=True),
    even(20, 20, matter=True, named=True),
    even(20, 20, matter=True, named=False),
    World(*SPREAD, matter=False, named=False),
    World(*SPREAD, matter=True, named=True),
    World(*ONE_LARGE, matter=False, named=False),
    World(*ONE_LARGE, matter=True, named=True),
    even(60, 20, matter=False, named=False),
    even(60, 20, matter=True, named=True),
)
# Where a single question is looked at: few and many, with few and many answers.
SHAPES = tuple(even(*shape, matter=False, named=False) for shape in ((20, 20), (60, 20), (20, 60)))
