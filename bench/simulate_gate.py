"""How often the gate promotes what is no better, and what is: simulated evaluations.

    python -m bench.simulate_gate [--runs 1000] [--gain 0.1] [--processes N]

The worlds stand in `bench/gate_worlds.py`.  A run has the default settings and takes from the
evaluation the figures on which `gate.decide` decides.  The first runs of each line are also settled
to their end: predictions are written, measured and summarised as the evaluate stage does it,
`gate.settle` moves the champion or keeps the refusal, and its verdict must be the same.  A line says
how often the gate promoted; `said` is the mean of what the verdicts themselves said, `refused` the
share that one question refused although the whole gain was shown, `uncorrected` the share that its
interval alone would have refused.

Two more tables look at single questions: how many of equally good scorers appear to lose too much, and
how often a question is found that the adapter has ruined.

Exits with 1 where equally good scorers are promoted, or a question refuses by chance, more often than
they may and the error of so many runs, or where what the verdicts say is further than MAX_OFF from
what came.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.gate_worlds import (
    BASE_NOISE,
    SHAPES,
    WORLDS,
    World,
    columns,
    draw,
    noise_of,
    predictions,
    qwk_gain,
    terms,
    true_loss,
)
from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, Interval, SplitCounts
from gradelora.champion import champion_of, read_champions
from gradelora.comparison import Comparison, PartGain
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.evaluate.intervals import Resampled, difference_interval, undefined
from gradelora.evaluate.items import Items
from gradelora.evaluate.metrics import write_metrics
from gradelora.evaluate.predictions import FILE, Prediction, write_predictions
from gradelora.evaluate.resampling import resampled_sums
from gradelora.evaluate.sections import summarise
from gradelora.gate import Verdict, decide, settle
from gradelora.losses import worth_a_look

ALPHA = 0.025
MAX_OFF = 0.05
WHOLE_RUNS = 5
NAME = "simulated"


def gain_of(items: Items, evaluation: EvaluateConfig) -> tuple[Interval, float]:
    """The QWK gain as `measure` gives it, and how many equal units it rests on."""
    units, both = items.units(), terms(items.human, items.base, items.adapter, items.step)
    drawing = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    worth = units.worth(np.ones(len(items), dtype=bool))
    ways = tuple(qwk_gain(resampled_sums(both, codes, **drawing)) for codes in units.ways)
    value = float(qwk_gain(both.sum(0)))
    if np.isnan(value):
        return undefined("one score"), worth
    resampled = Resampled(ways, units.counts, worth)
    return difference_interval(value, resampled, confidence_level=evaluation.confidence_level), worth


def judged(seed: int, world: World, adapter_noise: float, evaluation: EvaluateConfig | None = None) -> Verdict:
    """What the gate decides on one simulated evaluation."""
    evaluation, drawn = evaluation or EvaluateConfig(), draw(seed, world, adapter_noise)
    whole = columns(drawn, world, np.arange(len(drawn.human)))
    units, (gain, worth) = whole.units(), gain_of(whole, evaluation)
    parts = []
    for q, size in enumerate(world.sizes):
        of_question, its_worth = gain_of(columns(drawn, world, np.flatnonzero(drawn.question == q)), evaluation)
        parts.append(PartGain(kind="question", name=f"q{q:03}", items=size, worth=its_worth, gain=of_question))
    comparison = Comparison(
        rival="base",
        why="simulated",
        split="unseen_answers",
        items=len(whole),
        unit=units.unit,
        units=units.counts[0],
        crossed=units.crossed,
        crossed_units=units.crossed_units,
        worth=worth,
        confidence_level=evaluation.confidence_level,
        rival_qwk=undefined("not looked at"),
        adapter_qwk=undefined("not looked at"),
        gain=gain,
        parts=tuple(parts),
    )
    return decide(GateConfig(), comparison)


def evaluated(folder: Path, made: list[Prediction], config: EvaluateConfig) -> EvalReport:
    """The evaluate stage's folder of these predictions."""
    folder.mkdir(parents=True)
    write_predictions(folder / FILE, made)
    metrics = summarise(made, dict.fromkeys((p.item_id for p in made), 1), {}, config)
    write_metrics(folder, metrics)
    whole = metrics.sections[0].whole
    facts = {"base_qwk": whole.base.qwk, "adapter_qwk": whole.adapter.qwk, "qwk_gain": whole.gain.qwk}
    return EvalReport.collect(folder, split="unseen_answers", items=whole.items, **facts)


def data_of(folder: Path) -> EncodedDataset:
    """Data of no contents, for what asks only whether they are the same."""
    splits = SplitCounts(train=0, validation=0, unseen_answers=1, unseen_questions=0)
    facts = {"splits": splits, "tokens": 0, "longest": 0, "pad_token_id": 0}
    return EncodedDataset(path=folder, files=(), layout="harmony", **facts)


def settled(seed: int, world: World, adapter_noise: float, evaluation: EvaluateConfig | None = None) -> Verdict:
    """One run to its end in a store of its own, whose champion and refusals are looked at."""
    config = evaluation or EvaluateConfig()
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "adapter").mkdir()
        adapter = Adapter.collect(root / "adapter", repo_id="a/b", commit="c", **facts)
        report = evaluated(root / "report", predictions(seed, world, adapter_noise), config)
        verdict = settle(root, NAME, GateConfig(), config, adapter, report, data_of(root / "data"), lambda c: c.report)
        assert (champion_of(root, NAME) is not None) == verdict.promoted
        assert len(read_champions(root, NAME).refusals) == (not verdict.promoted)
    return verdict


def one_run(seed: int, world: World, adapter_noise: float) -> Verdict:
    """The verdict; of the first runs of a line proved to be that of the whole gate."""
    verdict = judged(seed, world, adapter_noise)
    if seed < WHOLE_RUNS:
        whole = settled(seed, world, adapter_noise)
        kept = [(v.promoted, len(v.losses), len(v.doubtful), v.tested) for v in (whole, verdict)]
        near = np.allclose([v.comparison.gain.low or 0 for v in (whole, verdict)], whole.comparison.gain.low or 0)
        assert kept[0] == kept[1], (seed, world, whole, verdict)
        assert near, (seed, world, whole, verdict)
    return verdict


def share(found: list[Verdict], has: Callable[[Verdict], bool]) -> float:
    """Of the runs, those with it."""
    return float(np.mean([has(verdict) for verdict in found]))


def alone(verdict: Verdict) -> bool:
    """Whether a question loses too much by its own interval, the number of questions aside."""
    return bool(verdict.losses) or bool(worth_a_look(verdict.doubtful))


def at_most(rate: float, runs: int) -> float:
    """What so many runs may show of an error at `rate`."""
    return rate + 1.96 * float(np.sqrt(rate * (1 - rate) / runs))


def ending(held: bool) -> str:
    """How a line closes."""
    return "ok" if held else "NOT HELD"


def line(world: World, gain: float, found: list[Verdict]) -> tuple[str, bool]:
    """What became of the runs of one world, and whether it is what the gate promises."""
    promoted = share(found, lambda v: v.promoted)
    shown = [v for v in found if (v.comparison.gain.low or 0) > v.margin]
    refused, uncorrected = (n / len(found) for n in (sum(bool(v.losses) for v in shown), sum(map(alone, shown))))
    measured = float(np.mean([v.comparison.gain.value for v in found]))
    powers = [v.power for v in found if v.power is not None]
    said = float(np.mean(powers)) if powers else None
    students = {(False, False): "independent", (True, True): "named", (True, False): "not named"}
    # The power is that of the expected gain alone.
    off = said is not None and gain == GateConfig().expected_gain and abs(promoted - said) > MAX_OFF
    held = promoted <= at_most(ALPHA, len(found)) if not gain else not off
    spelled = "   n/a" if said is None else f"{100 * said:>4.1f} %"
    text = f"{world.name:>18} {students[world.matter, world.named]:>11} {gain:>9.2f} {measured:>8.3f} "
    return (
        text
        + f"{100 * promoted:>7.1f} % {spelled} {100 * refused:>6.1f} % {100 * uncorrected:>9.1f} %  {ending(held)}",
        held,
    )


def line_of_chance(world: World, found: list[Verdict]) -> tuple[str, bool]:
    """What questions look like in which nobody is better, and whether they refuse as seldom as they should."""
    refused = share(found, lambda v: bool(v.losses))
    seen = float(np.mean([len(v.losses) + len(worth_a_look(v.doubtful)) for v in found]))
    expected = float(np.mean([v.by_chance for v in found]))
    held = refused <= at_most(GateConfig().family_error, len(found))
    return f"{world.name:>18} {100 * refused:>7.1f} % {seen:>11.2f} {expected:>9.2f}  {ending(held)}", held


def line_of_ruin(world: World, found: list[Verdict]) -> str:
    """How often the one question is found: that the adapter is refused for it, or that the verdict names it."""
    refused = share(found, lambda v: any(p.name == "q000" for p in v.losses))
    listed = share(found, lambda v: any(p.name == "q000" for p in worth_a_look(v.doubtful)))
    promoted = share(found, lambda v: v.promoted)
    return f"{world.name:>18} {100 * refused:>9.1f} % {100 * listed:>8.1f} % {100 * promoted:>8.1f} %"


def tables(run: Callable[[World, float], list[Verdict]], runs: int, gain: float) -> bool:
    """Print all lines; whether each holds."""
    all_held = True
    print(
        f"Equally good: at most {100 * ALPHA:g} % may be promoted, {100 * at_most(ALPHA, runs):.1f} % of {runs} runs."
    )
    print(f"{'answers':>18} of students true gain measured  promoted   said  refused uncorrected", flush=True)
    for world in WORLDS:
        for true_gain in (0.0, gain):
            noise = noise_of(true_gain, world.matter) if true_gain else BASE_NOISE
            text, held = line(world, true_gain, run(world, noise))
            all_held &= held
            print(text, flush=True)
    error = GateConfig().family_error
    print(f"\nEqually good in each question: at most {100 * error:g} % may be refused for one.")
    print(f"{'answers':>18}   refused  seen a run  expected", flush=True)
    for world in SHAPES:
        text, held = line_of_chance(world, run(replace(world, alike=True), BASE_NOISE))
        all_held &= held
        print(text, flush=True)
    noise = noise_of(gain, matter=False)
    print(f"\nOne question ruined, in which QWK falls by {true_loss(noise):.2f}; the others gain {gain:.2f}.")
    print(f"{'answers':>18} refused for it  listed   promoted", flush=True)
    for world in SHAPES:
        print(line_of_ruin(world, run(replace(world, ruined=1), noise)), flush=True)
    return all_held


def main() -> int:
    """Print the tables; 0 where every line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated evaluations a line")
    parser.add_argument("--gain", type=float, default=GateConfig().expected_gain, help="QWK; a real gain's size")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    started, runs = time.monotonic(), arguments.runs
    print(f"{runs} gates a line, {EvaluateConfig().resamples} resamples; the base's noise is {BASE_NOISE}")
    # A second thread of so small a matrix product only waits for the first, and keeps a core from the other process.
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:

        def run(world: World, noise: float) -> list[Verdict]:
            return pool.starmap(one_run, [(seed, world, noise) for seed in range(runs)], chunksize=5)

        held = tables(run, runs, arguments.gain)
    print(f"{(time.monotonic() - started) / 60:.0f} minutes on {arguments.processes} processes")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
