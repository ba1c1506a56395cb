"""How often the gate promotes what is no better, and what is: simulated evaluations.

A question has its own maximum and difficulty.  The human score of an answer is its true quality
plus noise, cut into points.  A scorer does the same with its own noise, and in every question
with its own bias and its own precision: that is what makes the items of a question dependent.
Base and adapter are drawn alike where they are equally good.
"""

import time
from collections.abc import Iterator

import numpy as np

from gradelora.config import EvaluateConfig, GateConfig
from gradelora.evaluate import agreement
from gradelora.evaluate.intervals import difference_interval, resampled_sums
from gradelora.evaluate.measure import Bootstrap
from gradelora.evaluate.predictions import Prediction
from gradelora.evaluate.sections import slices_of
from gradelora.gate import comparison_of, decide

RATER_NOISE = 0.35
BIAS_SD = 0.25
PRECISION_SD = 0.3
BASE_NOISE = 0.9


def scored(rng: np.random.Generator, quality_QN: np.ndarray, noise: float) -> np.ndarray:
    """A scorer's view of the true quality [Q, N] before it is cut into points."""
    questions = (len(quality_QN), 1)
    bias = rng.normal(0, BIAS_SD, questions)
    spread = noise * np.exp(rng.normal(0, PRECISION_SD, questions))
    return quality_QN + bias + spread * rng.standard_normal(quality_QN.shape)


def draw(seed: int, questions: int, answers: int, adapter_noise: float) -> tuple[np.ndarray, ...]:
    """(maximum [Q, 1], human, base, adapter [Q, N]) in points."""
    rng = np.random.default_rng(seed)
    maximum = rng.integers(2, 6, (questions, 1))
    difficulty = rng.normal(0, 0.5, (questions, 1))
    quality = rng.standard_normal((questions, answers)) + difficulty

    def points(view: np.ndarray) -> np.ndarray:
        return np.clip(np.round((view / 4 + 0.5) * maximum), 0, maximum)

    human = points(quality + RATER_NOISE * rng.standard_normal(quality.shape))
    return maximum, human, points(scored(rng, quality, BASE_NOISE)), points(scored(rng, quality, adapter_noise))


def gains(
    runs: int, questions: int, answers: int, adapter_noise: float, resamples: int
) -> Iterator[tuple[float, float]]:
    """(gain, lower end of its interval) of the pooled QWK, run by run."""
    config = EvaluateConfig(resamples=resamples)
    units = np.repeat(np.arange(questions), answers)
    for run in range(runs):
        _, human, base, adapter = (array.ravel() for array in draw(run, questions, answers, adapter_noise))
        step = np.ones(human.size)
        both = [agreement.moments(human, view, step) for view in (base, adapter)]
        before, after = (
            agreement.qwk(resampled_sums(terms, units, resamples=resamples, seed=config.seed)) for terms in both
        )
        value = float(agreement.qwk(both[1].sum(0)) - agreement.qwk(both[0].sum(0)))
        found = difference_interval(value, after - before, confidence_level=config.confidence_level, units=questions)
        yield value, -np.inf if found.low is None else found.low


def predictions(seed: int, questions: int, answers: int, adapter_noise: float) -> list[Prediction]:
    """One simulated evaluation as the stage would write it."""
    maximum, human, base, adapter = draw(seed, questions, answers, adapter_noise)
    made = []
    for q in range(questions):
        scale = tuple(float(s) for s in range(int(maximum[q, 0]) + 1))
        for a in range(answers):
            views = {}
            for name, score in (("base", base[q, a]), ("adapter", adapter[q, a])):
                views |= {f"{name}_score": score, f"{name}_expected": score, f"{name}_confidence": 1.0}
                views |= {f"{name}_mass": 1.0, f"{name}_greedy": score, f"{name}_log_probabilities": ()}
            made.append(
                Prediction(
                    item_id=f"{q}:{a}",
                    record_id=f"{a}",
                    question_key=f"q{q:03}",
                    split="unseen_answers",
                    group=None,
                    score=human[q, a],
                    max_score=maximum[q, 0],
                    rater2_score=None,
                    step=1.0,
                    scores=scale,
                    **views,
                )
            )
    return made


def gate_rate(runs: int, questions: int, answers: int, adapter_noise: float, resamples: int) -> tuple[float, float]:
    """(share promoted by the whole gate, share refused for a question's loss alone)."""
    bootstrap = Bootstrap(resamples, 0.95, 0, ("qwk",))
    promoted = lost = 0
    for run in range(runs):
        made = predictions(run, questions, answers, adapter_noise)
        slices = slices_of("unseen_answers", made, bootstrap)
        verdict = decide(GateConfig(), comparison_of("base", "simulated", "unseen_answers", 0.95, *slices))
        promoted += verdict.promoted
        lost += not verdict.promoted and "loses" in verdict.reason
    return promoted / runs, lost / runs


def main(runs: int) -> None:
    """Print both tables."""
    started = time.process_time()
    resamples, answers = 500, 14
    error = 1.96 * np.sqrt(0.025 * 0.975 / runs)
    print(f"{runs} simulated evaluations a line, {answers} answers a question, {resamples} resamples")
    print(f"Equally good: at most 2.5 % +- {100 * error:.1f} % may have a lower end above 0.")
    print(f"{'questions':>9} {'adapter noise':>13} {'mean gain':>9} {'lower end > 0':>13}")
    for questions in (5, 10, 30, 100):
        for noise in (BASE_NOISE, 0.8, 0.7, 0.55, 0.4):
            found = np.array(list(gains(runs, questions, answers, noise, resamples)))
            print(f"{questions:>9} {noise:>13} {found[:, 0].mean():>9.3f} {100 * (found[:, 1] > 0).mean():>11.1f} %")
    print(f"The whole gate, with its rule for single questions, {runs // 10} evaluations a line:")
    print(f"{'questions':>9} {'adapter noise':>13} {'promoted':>9} {'a question lost':>15}")
    for noise in (BASE_NOISE, 0.7, 0.4):
        promoted, lost = gate_rate(runs // 10, 10, answers, noise, 200)
        print(f"{10:>9} {noise:>13} {100 * promoted:>7.1f} % {100 * lost:>13.1f} %")
    print(f"{time.process_time() - started:.0f} CPU-s")
