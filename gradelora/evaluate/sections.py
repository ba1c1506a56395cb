"""Predictions grouped into sections and slices; calibration, decoding, baselines."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gradelora.artifacts import Interval, Split
from gradelora.config import EvaluateConfig
from gradelora.evaluate.agreement import Array
from gradelora.evaluate.intervals import figure, rounded, undefined
from gradelora.evaluate.items import Items, items_of
from gradelora.evaluate.measure import Bootstrap, measure, measure_expected, measure_scores
from gradelora.evaluate.metrics import Baselines, Bin, Calibration, Decoding, Metrics, Section, Slice
from gradelora.evaluate.predictions import Prediction

BINS = 10
NO_GROUP = "(no group)"


@dataclass(frozen=True)
class Learned:
    """What the training split alone says about one question.

    `majority` is its commonest score (of equally common ones the lowest), `slope` and
    `intercept` the least-squares line from answer length in tokens to score.
    """

    majority: float
    slope: float
    intercept: float


def learn(lengths: Sequence[int], scores: Sequence[float]) -> Learned:
    """From the training answers to one question: at least one."""
    counts = collections.Counter(scores)
    majority = min(counts, key=lambda score: (-counts[score], score))
    x, y = np.array(lengths, dtype=np.float64), np.array(scores, dtype=np.float64)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
    return Learned(majority, slope, float(y.mean()) - slope * float(x.mean()))


def summarise(
    predictions: Sequence[Prediction],
    lengths: Mapping[str, int],
    learned: Mapping[str, Learned],
    config: EvaluateConfig,
) -> Metrics:
    """All figures.  `lengths` are answer tokens by item_id, `learned` by question_key.

    Raises ValueError where no configured split has an item.
    """
    filled = [s for s in config.splits if any(p.split == s for p in predictions)]
    if not filled:
        raise ValueError(f"no item in {', '.join(config.splits)}")
    bootstrap = Bootstrap(config.resamples, config.confidence_level, config.seed)
    sections = [_section(s, [p for p in predictions if p.split == s], lengths, learned, bootstrap) for s in filled]
    if len(filled) > 1:
        sections.append(_section("all", predictions, lengths, learned, bootstrap))
    return Metrics(
        headline=filled[0],
        empty_splits=tuple(s for s in config.splits if s not in filled),
        confidence_level=config.confidence_level,
        resamples=config.resamples,
        seed=config.seed,
        sections=tuple(sections),
    )


def _section(
    name: Split | Literal["all"],
    predictions: Sequence[Prediction],
    lengths: Mapping[str, int],
    learned: Mapping[str, Learned],
    bootstrap: Bootstrap,
) -> Section:
    items = items_of(predictions)
    whole, by_question, by_group = slices_of(name, predictions, bootstrap)
    return Section(
        name=name,
        questions=len(by_question),
        whole=whole,
        by_question=by_question,
        by_group=by_group,
        records=measure_records(items, bootstrap),
        baselines=_baselines(predictions, items, lengths, learned),
        base_expected=measure_expected(items, np.array([p.base_expected for p in predictions]), bootstrap),
        adapter_expected=measure_expected(items, np.array([p.adapter_expected for p in predictions]), bootstrap),
        base_calibration=calibration([p.base_confidence for p in predictions], items.base == items.human),
        adapter_calibration=calibration([p.adapter_confidence for p in predictions], items.adapter == items.human),
        base_decoding=_decoding([(p.base_greedy, p.base_score, p.base_mass) for p in predictions]),
        adapter_decoding=_decoding([(p.adapter_greedy, p.adapter_score, p.adapter_mass) for p in predictions]),
    )


def slices_of(
    name: str, predictions: Sequence[Prediction], bootstrap: Bootstrap
) -> tuple[Slice, tuple[Slice, ...], tuple[Slice, ...]]:
    """The whole, every question and every group of the predictions; items of no group make one beside others."""
    # Small slices are many: an interval where the gate looks, on QWK, and where a group may be wronged, on SMD.
    few, fair = (replace(bootstrap, statistics=names) for names in (("qwk",), ("qwk", "smd")))
    by_question: dict[str, list[Prediction]] = {}
    by_group: dict[str, list[Prediction]] = {}
    for p in predictions:
        by_question.setdefault(p.question_key, []).append(p)
        by_group.setdefault(NO_GROUP if p.group is None else p.group, []).append(p)
    if by_group.keys() == {NO_GROUP}:
        by_group = {}
    return (
        measure(name, items_of(predictions), bootstrap),
        tuple(measure(q, items_of(by_question[q]), few) for q in sorted(by_question)),
        tuple(measure(g, items_of(by_group[g]), fair) for g in sorted(by_group)),
    )


def measure_records(items: Items, bootstrap: Bootstrap) -> Slice:
    """Sums over the items of each record that has at least two here; records are the units."""
    members: dict[str, list[int]] = {}
    for i, record in enumerate(items.records):
        members.setdefault(record, []).append(i)
    several = {record: at for record, at in members.items() if len(at) > 1}

    def summed(column: Array) -> Array:
        return np.array([column[at].sum() for at in several.values()], dtype=np.float64)

    sums = Items(
        # One scale: sums have no question, so QWK over questions is that of the whole.
        questions=("records",) * len(several),
        records=tuple(several),
        students=tuple(items.students[at[0]] for at in several.values()),
        human=summed(items.human),
        rater2=summed(items.rater2),
        base=summed(items.base),
        adapter=summed(items.adapter),
        step=np.array([items.step[at].min() for at in several.values()], dtype=np.float64),
        labels=(),
    )
    return measure("records", sums, bootstrap)


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
    """ECE: mean over bins of |confidence - accuracy|, weighted by items (Guo et al. 2017, eq. 3)."""
    confidence = np.array(confidences, dtype=np.float64)
    correct = np.array(right, dtype=np.float64)
    # Bins are (low, high]; 0 goes into the first.
    place = np.clip(np.ceil(confidence * BINS - 1e-9).astype(np.int64) - 1, 0, BINS - 1)
    bins, error = [], 0.0
    for b in range(BINS):
        here = place == b
        count = int(here.sum())
        mean = accuracy = None
        if count:
            mean, accuracy = rounded(confidence[here].mean()), rounded(correct[here].mean())
            error += abs(float(confidence[here].sum() - correct[here].sum()))
        bins.append(Bin(low=b / BINS, high=(b + 1) / BINS, items=count, confidence=mean, accuracy=accuracy))
    ece = figure(error / len(confidence)) if len(confidence) else undefined("no items")
    return Calibration(ece=ece, bins=tuple(bins))


def _decoding(rows: Sequence[tuple[float | None, float, float]]) -> Decoding:
    """Of (greedy, score, mass)."""

    def share(values: Sequence[float]) -> Interval:
        return figure(sum(values) / len(values))

    return Decoding(
        unparseable=share([greedy is None for greedy, _, _ in rows]),
        same=share([greedy == score for greedy, score, _ in rows]),
        mass=share([mass for _, _, mass in rows]),
    )


def _baselines(
    predictions: Sequence[Prediction], items: Items, lengths: Mapping[str, int], learned: Mapping[str, Learned]
) -> Baselines:
    majority, length = [], []
    for p in predictions:
        known = learned.get(p.question_key)
        if known is None:
            majority.append(np.nan)
            length.append(np.nan)
            continue
        majority.append(known.majority)
        line = known.intercept + known.slope * lengths[p.item_id]
        length.append(min(p.scores, key=lambda score: (abs(score - line), score)))
    why_not = "no training answer to any of these questions"
    return Baselines(
        majority=measure_scores(items, np.array(majority, dtype=np.float64), why_not),
        length=measure_scores(items, np.array(length, dtype=np.float64), why_not),
    )
