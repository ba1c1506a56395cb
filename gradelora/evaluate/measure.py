"""From predictions to metrics: which items, which figure, which interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradelora.artifacts import Interval
from gradelora.evaluate import agreement
from gradelora.evaluate.agreement import STATISTICS, Array
from gradelora.evaluate.intervals import (
    MIN_QUESTIONS,
    Codes,
    Unit,
    difference_interval,
    figure,
    interval,
    numbered,
    resampled_sums,
    undefined,
)
from gradelora.evaluate.metrics import Agreement, Confusion, Gain, Slice

QUESTION_STATISTICS = ("mean_question_qwk", "within_question_qwk")
# Scores are coded as whole steps of the widest of these that holds them all.
GRIDS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; `statistics` are those that get one, the others stand alone."""

    resamples: int
    confidence_level: float
    seed: int
    statistics: tuple[str, ...] = (*STATISTICS, *QUESTION_STATISTICS)


@dataclass(frozen=True)
class Items:
    """Columns over N items; `rater2` is NaN where there is none; `labels` are the scale's scores."""

    questions: tuple[str, ...]
    records: tuple[str, ...]
    human: Array
    rater2: Array
    base: Array
    adapter: Array
    step: Array
    labels: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.human)

    def where(self, chosen: Sequence[int]) -> "Items":
        """These items alone."""
        at = list(chosen)
        return Items(
            questions=tuple(self.questions[i] for i in at),
            records=tuple(self.records[i] for i in at),
            human=self.human[at],
            rater2=self.rater2[at],
            base=self.base[at],
            adapter=self.adapter[at],
            step=self.step[at],
            labels=self.labels,
        )

    def units(self) -> tuple[Unit, Codes]:
        """What to resample: questions if there are enough of them, else records."""
        questions = numbered(list(self.questions))
        if len(self) and questions.max() + 1 >= MIN_QUESTIONS:
            return "question", questions
        return "record", numbered(list(self.records))


@dataclass(frozen=True)
class _Measured:
    """Point estimates by name, their resamples [B] where intervals are wanted, reasons where undefined."""

    points: dict[str, float]
    resampled: dict[str, Array]
    reasons: dict[str, str]


def measure(name: str, items: Items, bootstrap: Bootstrap) -> Slice:
    """Base, adapter and second rater on one set of items."""
    unit, codes = items.units()
    units = int(codes.max()) + 1 if len(items) else 0
    double = ~np.isnan(items.rater2)
    everywhere = np.ones(len(items), dtype=bool)
    base = _measured(items, items.base, everywhere, unit, codes, bootstrap)
    adapter = _measured(items, items.adapter, everywhere, unit, codes, bootstrap)
    ceiling = _measured(items, np.nan_to_num(items.rater2), double, unit, codes, bootstrap)
    if not double.any():
        ceiling = _Measured({}, {}, dict.fromkeys((*STATISTICS, *QUESTION_STATISTICS), "no item has a second rating"))
    return Slice(
        name=name,
        items=len(items),
        unit=unit,
        units=units,
        base=_agreement(base, len(items), _prmse(items, items.base), bootstrap, units),
        adapter=_agreement(adapter, len(items), _prmse(items, items.adapter), bootstrap, units),
        ceiling=_agreement(ceiling, int(double.sum()), undefined("a rater is no system"), bootstrap, units),
        gain=_gain(base, adapter, bootstrap, units),
        base_confusion=confusion(items.human, items.base, items.labels),
        adapter_confusion=confusion(items.human, items.adapter, items.labels),
    )


def measure_scores(items: Items, scored: Array, why_not: str) -> Agreement:
    """One more scorer without intervals; NaN in `scored` where it has none, `why_not` if that is everywhere."""
    has = ~np.isnan(scored)
    if not has.any():
        reasons = dict.fromkeys((*STATISTICS, *QUESTION_STATISTICS), why_not)
        return _agreement(_Measured({}, {}, reasons), 0, undefined(why_not), None, 0)
    chosen = items.where(np.flatnonzero(has).tolist())
    none = Bootstrap(0, 0.95, 0, ())
    unit, codes = chosen.units()
    measured = _measured(chosen, scored[has], np.ones(len(chosen), dtype=bool), unit, codes, none)
    return _agreement(measured, len(chosen), _prmse(chosen, scored[has]), None, 0)


def _measured(
    items: Items, scored: Array, chosen: "np.ndarray", unit: Unit, codes: Codes, bootstrap: Bootstrap
) -> _Measured:
    """Figures of `scored` on the `chosen` items; the draws are over all items' units, so they are paired."""
    terms = agreement.moments(items.human, scored, items.step) * chosen[:, None]
    points = _points(items.human[chosen], scored[chosen], items.step[chosen])
    reasons = {n: _why(n, items.human[chosen]) for n, v in points.items() if np.isnan(v)}
    questions = numbered(list(items.questions))
    by_question = np.zeros((int(questions.max()) + 1 if len(items) else 0, terms.shape[1]))
    np.add.at(by_question, questions, terms)
    points |= dict(zip(QUESTION_STATISTICS, (float(v) for v in _over_questions(by_question)), strict=True))
    for name in QUESTION_STATISTICS:
        if np.isnan(points[name]):
            reasons[name] = "undefined in every question" if chosen.any() else "no items"
    resampled: dict[str, Array] = {}
    if bootstrap.statistics and chosen.any():
        sums = resampled_sums(terms, codes, resamples=bootstrap.resamples, seed=bootstrap.seed)
        resampled = {n: f(sums) for n, f in STATISTICS.items() if n in bootstrap.statistics}
        if any(n in bootstrap.statistics for n in QUESTION_STATISTICS):
            both = _resampled_questions(terms, by_question, questions, unit, codes, bootstrap)
            resampled |= dict(zip(QUESTION_STATISTICS, both, strict=True))
    return _Measured(points, resampled, reasons)


def _over_questions(sums: Array) -> tuple[Array, Array]:
    """(mean QWK, QWK with chance within questions) of sums [..., Q, C]."""
    kappas = agreement.qwk(sums)
    defined = ~np.isnan(kappas)
    difference = agreement.squared_difference(sums).sum(-1)
    chance = np.nan_to_num(agreement.expected_difference(sums)).sum(-1)
    mean = agreement.ratio(np.nan_to_num(kappas).sum(-1), defined.sum(-1).astype(np.float64))
    within = 1 - agreement.ratio(difference, np.where(chance > agreement.EPSILON, chance, 0))
    return mean, within


def _resampled_questions(
    terms: Array, by_question: Array, questions: Codes, unit: Unit, codes: Codes, bootstrap: Bootstrap
) -> tuple[Array, Array]:
    """The same two for every resample: [B], [B]."""
    draw = {"resamples": bootstrap.resamples, "seed": bootstrap.seed}
    if unit == "record":
        # Fewer than MIN_QUESTIONS: each question's sums under the same draws of records.
        each = [resampled_sums(terms * (questions == q)[:, None], codes, **draw) for q in range(len(by_question))]
        return _over_questions(np.stack(each, axis=1))
    # Whole questions are drawn, so each keeps its own kappa and counts as often as it is drawn.
    kappas = agreement.qwk(by_question)
    columns = [
        np.nan_to_num(kappas),
        ~np.isnan(kappas),
        agreement.squared_difference(by_question),
        np.nan_to_num(agreement.expected_difference(by_question)),
    ]
    stacked = np.stack([c.astype(np.float64) for c in columns], axis=-1)
    sums = resampled_sums(stacked, np.arange(len(by_question)), **draw)
    chance = np.where(sums[:, 3] > agreement.EPSILON, sums[:, 3], 0)
    return agreement.ratio(sums[:, 0], sums[:, 1]), 1 - agreement.ratio(sums[:, 2], chance)


def _points(human: Array, scored: Array, step: Array) -> dict[str, float]:
    """Point estimates by scikit-learn and scipy; NaN where the sums say that it is undefined."""
    from scipy import stats
    from sklearn import metrics

    sums = agreement.moments(human, scored, step).sum(0)
    points = {name: float(statistic(sums)) for name, statistic in STATISTICS.items()}
    if len(human) == 0:
        return points
    points["mae"] = float(metrics.mean_absolute_error(human, scored))
    points["rmse"] = float(metrics.root_mean_squared_error(human, scored))
    if not np.isnan(points["pearson"]):
        points["pearson"] = float(stats.pearsonr(human, scored).statistic)
    if not np.isnan(points["qwk"]):
        codes_human, codes_scored, labels = coded(human, scored)
        points["qwk"] = float(metrics.cohen_kappa_score(codes_human, codes_scored, weights="quadratic", labels=labels))
    return points


def coded(human: Array, scored: Array) -> tuple[Codes, Codes, list[int]]:
    """Both as whole numbers of steps, and every step from 0 to the highest as labels."""
    both = np.concatenate([human, scored])
    grid = next((g for g in GRIDS if np.allclose(both / g, np.round(both / g), atol=1e-6)), GRIDS[-1])
    codes = np.round(both / grid).astype(np.int64)
    labels = list(range(min(0, int(codes.min())), int(codes.max()) + 1))
    return codes[: len(human)], codes[len(human) :], labels


def confusion(human: Array, scored: Array, labels: Sequence[float]) -> Confusion:
    """Counts by human score and scored score; labels are the scale and what else was given."""
    from sklearn import metrics

    known = sorted({round(float(v), 6) for v in (*labels, *human, *scored)})
    if len(human) == 0 or len(known) == 1:
        return Confusion(labels=tuple(known), counts=tuple((len(human),) * len(known) for _ in known))
    place = {value: i for i, value in enumerate(known)}
    rows = [place[round(float(v), 6)] for v in human]
    columns = [place[round(float(v), 6)] for v in scored]
    counts = metrics.confusion_matrix(rows, columns, labels=list(range(len(known))))
    return Confusion(labels=tuple(known), counts=tuple(tuple(int(c) for c in row) for row in counts))


def _why(name: str, human: Array) -> str:
    """Why a statistic of these scores is undefined."""
    if len(human) == 0:
        return "no items"
    if len(human) == 1 and name in ("pearson", "smd"):
        return "one item has no variance"
    if name == "pearson":
        return "the human scores do not vary" if np.ptp(human) == 0 else "the given scores do not vary"
    if name == "smd":
        return "no score varies"
    return "both give every item one and the same score: no chance agreement to beat"


def _prmse(items: Items, scored: Array) -> Interval:
    try:
        return figure(agreement.prmse(items.human, items.rater2, scored))
    except ValueError as reason:
        return undefined(str(reason))


def _agreement(measured: _Measured, items: int, prmse: Interval, bootstrap: Bootstrap | None, units: int) -> Agreement:
    names = (*STATISTICS, *QUESTION_STATISTICS)
    figures = {name: _figure(name, measured, bootstrap, units) for name in names}
    return Agreement(items=items, prmse=prmse, **figures)


def _figure(name: str, measured: _Measured, bootstrap: Bootstrap | None, units: int) -> Interval:
    if name in measured.reasons:
        return undefined(measured.reasons[name])
    if bootstrap is None or name not in measured.resampled:
        return figure(measured.points[name])
    return interval(
        measured.points[name], measured.resampled[name], confidence_level=bootstrap.confidence_level, units=units
    )


def _gain(base: _Measured, adapter: _Measured, bootstrap: Bootstrap, units: int) -> Gain:
    figures = {}
    for name in Gain.model_fields:
        reason = adapter.reasons.get(name) or base.reasons.get(name)
        if reason:
            figures[name] = undefined(reason)
            continue
        value = adapter.points[name] - base.points[name]
        if name not in adapter.resampled:
            figures[name] = figure(value)
            continue
        resampled = adapter.resampled[name] - base.resampled[name]
        level = bootstrap.confidence_level
        figures[name] = difference_interval(value, resampled, confidence_level=level, units=units)
    return Gain(**figures)
