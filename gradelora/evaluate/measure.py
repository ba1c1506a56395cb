"""From predictions to metrics: which items, which figure, which interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradelora.artifacts import Interval
from gradelora.evaluate import agreement
from gradelora.evaluate.agreement import STATISTICS, Array
from gradelora.evaluate.intervals import Resampled, difference_interval, figure, interval, undefined
from gradelora.evaluate.items import Items
from gradelora.evaluate.metrics import Agreement, Confusion, Gain, Slice
from gradelora.evaluate.resampling import Codes, Units, numbered, resampled_by_question, resampled_sums, sums_by

QUESTION_STATISTICS = ("mean_question_qwk", "within_question_qwk")
# Where a figure can lie; -1 to 1 where it is not named.
INFINITE = float("inf")
BOUNDS = {
    "exact": (0.0, 1.0),
    "adjacent": (0.0, 1.0),
    "within_step": (0.0, 1.0),
    "mae": (0.0, INFINITE),
    "rmse": (0.0, INFINITE),
    "smd": (-INFINITE, INFINITE),
}
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
class _Measured:
    """Point estimates by name, their resamples where intervals are wanted, reasons where undefined."""

    points: dict[str, float]
    resampled: dict[str, Resampled]
    reasons: dict[str, str]


def measure(name: str, items: Items, bootstrap: Bootstrap) -> Slice:
    """Base, adapter and second rater on one set of items."""
    units = items.units()
    double = ~np.isnan(items.rater2)
    everywhere = np.ones(len(items), dtype=bool)
    base = _measured(items, items.base, everywhere, units, bootstrap)
    adapter = _measured(items, items.adapter, everywhere, units, bootstrap)
    if double.any():
        ceiling = _measured(items, np.nan_to_num(items.rater2), double, units, bootstrap)
    else:
        ceiling = _Measured({}, {}, dict.fromkeys((*STATISTICS, *QUESTION_STATISTICS), "no item has a second rating"))
    return Slice(
        name=name,
        items=len(items),
        unit=units.unit,
        units=units.counts[0],
        students=units.students,
        base=_agreement(base, len(items), _prmse(items, items.base), bootstrap),
        adapter=_agreement(adapter, len(items), _prmse(items, items.adapter), bootstrap),
        ceiling=_agreement(ceiling, int(double.sum()), undefined("a rater is no system"), bootstrap),
        gain=_gain(base, adapter, bootstrap),
        base_confusion=confusion(items.human, items.base, items.labels),
        adapter_confusion=confusion(items.human, items.adapter, items.labels),
    )


def measure_scores(items: Items, scored: Array, why_not: str) -> Agreement:
    """One more scorer without intervals; NaN in `scored` where it has none, `why_not` if that is everywhere."""
    has = ~np.isnan(scored)
    if not has.any():
        reasons = dict.fromkeys((*STATISTICS, *QUESTION_STATISTICS), why_not)
        return _agreement(_Measured({}, {}, reasons), 0, undefined(why_not), None)
    chosen = items.where(np.flatnonzero(has).tolist())
    none = Bootstrap(0, 0.95, 0, ())
    measured = _measured(chosen, scored[has], np.ones(len(chosen), dtype=bool), chosen.units(), none)
    return _agreement(measured, len(chosen), _prmse(chosen, scored[has]), None)


def _measured(items: Items, scored: Array, chosen: "np.ndarray", units: Units, bootstrap: Bootstrap) -> _Measured:
    """Figures of `scored` on the `chosen` items; the draws are over all items' units, so they are paired."""
    terms = agreement.moments(items.human, scored, items.step) * chosen[:, None]
    points = _points(items.human[chosen], scored[chosen], items.step[chosen])
    reasons = {n: _why(n, items.human[chosen]) for n, v in points.items() if np.isnan(v)}
    questions = numbered(items.questions)
    over_questions = _over_questions(sums_by(questions, terms))
    points |= dict(zip(QUESTION_STATISTICS, map(float, over_questions), strict=True))
    for name in QUESTION_STATISTICS:
        if np.isnan(points[name]):
            reasons[name] = "undefined in every question" if chosen.any() else "no items"
    ways = [_resampled(terms, questions, codes, bootstrap) for codes in units.ways] if chosen.any() else []
    resampled = {n: Resampled(tuple(way[n] for way in ways), units.counts) for n in (ways[0] if ways else ())}
    return _Measured(points, resampled, reasons)


def _resampled(terms: Array, questions: Codes, codes: Codes, bootstrap: Bootstrap) -> dict[str, Array]:
    """Each wanted statistic under resamples of the units `codes`: [B]."""
    wanted = bootstrap.statistics
    draw = {"resamples": bootstrap.resamples, "seed": bootstrap.seed}
    found: dict[str, Array] = {}
    if wanted:
        sums = resampled_sums(terms, codes, **draw)
        found = {n: statistic(sums) for n, statistic in STATISTICS.items() if n in wanted}
    if any(n in wanted for n in QUESTION_STATISTICS):
        both = _resampled_questions(terms, questions, codes, draw)
        found |= dict(zip(QUESTION_STATISTICS, both, strict=True))
    return found


def _over_questions(sums: Array) -> tuple[Array, Array]:
    """(mean QWK, QWK with chance within questions) of sums [..., Q, C]."""
    kappas = agreement.qwk(sums)
    defined = ~np.isnan(kappas)
    difference = agreement.squared_difference(sums).sum(-1)
    chance = np.nan_to_num(agreement.expected_difference(sums)).sum(-1)
    mean = agreement.ratio(np.nan_to_num(kappas).sum(-1), defined.sum(-1).astype(np.float64))
    within = 1 - agreement.ratio(difference, np.where(chance > agreement.EPSILON, chance, 0))
    return mean, within


def _resampled_questions(terms: Array, questions: Codes, codes: Codes, draw: Mapping[str, int]) -> tuple[Array, Array]:
    """The same two for every resample: [B], [B]."""
    if not np.array_equal(codes, questions):
        parts = [_over_questions(sums) for sums in resampled_by_question(terms, questions, codes, **draw)]
        return np.concatenate([mean for mean, _ in parts]), np.concatenate([within for _, within in parts])
    # Whole questions are drawn, so each keeps its own kappa and counts as often as it is drawn.
    by_question = sums_by(questions, terms)
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


def _agreement(measured: _Measured, items: int, prmse: Interval, bootstrap: Bootstrap | None) -> Agreement:
    names = (*STATISTICS, *QUESTION_STATISTICS)
    figures = {name: _figure(name, measured, bootstrap) for name in names}
    return Agreement(items=items, prmse=prmse, **figures)


def _figure(name: str, measured: _Measured, bootstrap: Bootstrap | None) -> Interval:
    if name in measured.reasons:
        return undefined(measured.reasons[name])
    if bootstrap is None or name not in measured.resampled:
        return figure(measured.points[name])
    return interval(
        measured.points[name],
        measured.resampled[name],
        confidence_level=bootstrap.confidence_level,
        bounds=BOUNDS.get(name, (-1.0, 1.0)),
    )


def _gain(base: _Measured, adapter: _Measured, bootstrap: Bootstrap) -> Gain:
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
        figures[name] = difference_interval(value, resampled, confidence_level=bootstrap.confidence_level)
    return Gain(**figures)
