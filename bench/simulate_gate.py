"""How often the gate promotes what is no better, and what is: simulated evaluations, each settled to its end.

    python bench/simulate_gate.py [--runs 1000] [--gain 0.1] [--processes N]

A question has its own maximum and difficulty, a student an ability where students matter.  The human score of an answer
is its true quality plus noise, cut into points.  A scorer does the same with its own noise, in
every question with its own bias and precision, and towards every student with its own bias: that
is what makes answers of one question, and those of one student, dependent.  Base and adapter are
drawn alike where they are equally good; a real gain is an adapter with less noise, as much less as
moves QWK by `gate.expected_gain` over many questions.

Every run is the whole gate: predictions are written, measured and summarised as the evaluate
stage does it, and `gate.settle` judges them and moves the champion or keeps the refusal.  A line
says how often it promoted; `power` is the mean of what the verdicts themselves said.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradelora.artifacts import Adapter, EvalReport
from gradelora.champion import champion_of, read_champions
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.evaluate import agreement
from gradelora.evaluate.metrics import write_metrics
from gradelora.evaluate.predictions import FILE, Prediction, write_predictions
from gradelora.evaluate.sections import summarise
from gradelora.gate import Verdict, settle

RATER_NOISE = 0.35
QUESTION_BIAS_SD = 0.25
STUDENT_BIAS_SD = 0.4
PRECISION_SD = 0.3
BASE_NOISE = 0.9
ABILITY_SD = 0.6
RESAMPLES = 500
NAME = "simulated"


@dataclass(frozen=True)
class World:
    """`students` answer all of `questions`; `matter`: answers of one depend; `named`: the data say whose they are."""

    questions: int
    students: int
    matter: bool
    named: bool


def scored(rng: np.random.Generator, quality_QS: np.ndarray, noise: float, matter: bool) -> np.ndarray:
    """A scorer's view of the true quality [Q, S] before it is cut into points."""
    questions, students = quality_QS.shape
    bias = rng.normal(0, QUESTION_BIAS_SD, (questions, 1)) + matter * rng.normal(0, STUDENT_BIAS_SD, (1, students))
    spread = noise * np.exp(rng.normal(0, PRECISION_SD, (questions, 1)))
    return quality_QS + bias + spread * rng.standard_normal(quality_QS.shape)


def draw(seed: int, world: World, adapter_noise: float) -> tuple[np.ndarray, ...]:
    """(maximum [Q, 1], human, base, adapter [Q, S]) in points."""
    rng, questions, students = np.random.default_rng(seed), world.questions, world.students
    maximum = rng.integers(2, 6, (questions, 1))
    difficulty = rng.normal(0, 0.5, (questions, 1))
    shared = ABILITY_SD * world.matter
    ability = rng.normal(0, shared, (1, students))
    rest = np.sqrt(1 - shared**2) * rng.standard_normal((questions, students))
    quality = rest + ability + difficulty

    def points(view: np.ndarray) -> np.ndarray:
        return np.clip(np.round((view / 4 + 0.5) * maximum), 0, maximum)

    human = points(quality + RATER_NOISE * rng.standard_normal(quality.shape))
    base, adapter = (points(scored(rng, quality, noise, world.matter)) for noise in (BASE_NOISE, adapter_noise))
    return maximum, human, base, adapter


def true_gain(adapter_noise: float, matter: bool) -> float:
    """QWK of the adapter less that of the base over many questions and students."""
    many = World(1500, 300, matter, named=False)
    _, human, base, adapter = (array.ravel() for array in draw(0, many, adapter_noise))
    step = np.ones(human.size)
    before, after = (float(agreement.qwk(agreement.moments(human, view, step).sum(0))) for view in (base, adapter))
    return after - before


def noise_of(gain: float, matter: bool) -> float:
    """The adapter's noise that makes a true gain, by bisection."""
    low, high = 0.0, BASE_NOISE
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if true_gain(middle, matter) > gain else (low, middle)
    return (low + high) / 2


def predictions(seed: int, world: World, adapter_noise: float) -> list[Prediction]:
    """One simulated evaluation as the stage would write it."""
    maximum, human, base, adapter = draw(seed, world, adapter_noise)
    made = []
    for q in range(world.questions):
        scale = tuple(float(s) for s in range(int(maximum[q, 0]) + 1))
        for s in range(world.students):
            views = {}
            for name, score in (("base", base[q, s]), ("adapter", adapter[q, s])):
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
                    score=human[q, s],
                    max_score=maximum[q, 0],
                    rater2_score=None,
                    step=1.0,
                    scores=scale,
                    **views,
                )
            )
    return made


def evaluated(folder: Path, made: list[Prediction], config: EvaluateConfig) -> EvalReport:
    """The evaluate stage's folder of these predictions."""
    folder.mkdir(parents=True)
    write_predictions(folder / FILE, made)
    metrics = summarise(made, dict.fromkeys((p.item_id for p in made), 1), {}, config)
    write_metrics(folder, metrics)
    whole = metrics.sections[0].whole
    facts = {"base_qwk": whole.base.qwk, "adapter_qwk": whole.adapter.qwk, "qwk_gain": whole.gain.qwk}
    return EvalReport.collect(folder, split="unseen_answers", items=whole.items, **facts)


def settled(seed: int, world: World, adapter_noise: float, resamples: int = RESAMPLES) -> Verdict:
    """One run in a store of its own, whose champion and refusals are looked at."""
    config = EvaluateConfig(resamples=resamples)
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "adapter").mkdir()
        adapter = Adapter.collect(root / "adapter", repo_id="a/b", commit="c", **facts)
        report = evaluated(root / "report", predictions(seed, world, adapter_noise), config)
        verdict = settle(root, NAME, GateConfig(), config, adapter, report, "data")
        assert (champion_of(root, NAME) is not None) == verdict.promoted
        assert len(read_champions(root, NAME).refusals) == (not verdict.promoted)
    return verdict


WORLDS = (
    World(10, 14, matter=False, named=False),
    World(20, 20, matter=False, named=False),
    World(10, 14, matter=True, named=True),
    World(20, 20, matter=True, named=True),
    World(20, 20, matter=True, named=False),
)


def line(world: World, gain: float, noise: float, found: list[Verdict]) -> str:
    """What became of the runs of one world."""
    promoted, lost = (np.mean(v) for v in ([v.promoted for v in found], [bool(v.losses) for v in found]))
    measured, power = (np.mean(v) for v in ([v.comparison.gain.value for v in found], [v.power for v in found]))
    students = {(False, False): "independent", (True, True): "named", (True, False): "not named"}
    return (
        f"{world.questions:>9} {world.students:>8} {students[world.matter, world.named]:>11} {noise:>6.3f} "
        f"{gain:>9.2f} {measured:>8.3f} {100 * promoted:>7.1f} % {100 * power:>4.0f} % {100 * lost:>4.1f} %"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated evaluations a line")
    parser.add_argument("--gain", type=float, default=GateConfig().expected_gain, help="QWK; a real gain's size")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    started, runs = time.monotonic(), arguments.runs
    error = 1.96 * np.sqrt(0.025 * 0.975 / runs)
    print(f"{runs} gates a line, {RESAMPLES} resamples; the base's noise is {BASE_NOISE}")
    print(f"Equally good: at most 2.5 % may be promoted, {100 * (0.025 + error):.1f} % of {runs} runs.")
    print("questions students    of those  noise true gain measured  promoted  power  loss", flush=True)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for world in WORLDS:
            for gain in (0.0, arguments.gain):
                noise = noise_of(gain, world.matter) if gain else BASE_NOISE
                found = pool.starmap(settled, [(run, world, noise) for run in range(runs)], chunksize=5)
                print(line(world, gain, noise, found), flush=True)
    print(f"{(time.monotonic() - started) / 60:.0f} minutes on {arguments.processes} processes")


if __name__ == "__main__":
    main()
