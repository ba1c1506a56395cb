"""From predictions to metrics: which items, which figure, which interval."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gradelora.artifacts import Interval
from gradelora.evaluate import agreement
from gradelora.evaluate.agreement import STATISTICS, Array
from gradelora.evaluate.estimates import confusion, points_of, why_undefined
from gradelora.evaluate.intervals import Resampled, difference_interval, figure, interval, rounded, undefined
from gradelora.evaluate.items import Items
from gradelora.evaluate.metrics import Agreement, Expected, Gain, Slice
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
# PRMSE rests on the raters' error variance, of which fewer second ratings say nothing.
MIN_DOUBLES = 10


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; `statistics` are those that get one, the others stand alone."""

    resamples: int
    confidence_level: float
    seed: int
    statistics: tuple[str, ...] = (*STATISTICS, *QUESTION_STATISTICS, "prmse")


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
        crossed=units.crossed,
        crossed_units=units.crossed_units,
        worth=rounded(units.worth(everywhere)),
        base=_agreement(base, len(items), _prmse(items, items.base, bootstrap), bootstrap),
        adapter=_agreement(adapter, len(items), _prmse(items, items.adapter, bootstrap), bootstrap),
        ceiling=_agreement(ceiling, int(double.sum()), undefined("a rater is no system"), bootstrap),
        gain=_gain(base, adapter, bootstrap),
        degradation=_degradation(items, ceiling, double, units, bootstrap),
        base_confusion=confusion(items.human, items.base, items.labels),
        adapter_confusion=confusion(items.human, items.adapter, items.labels),
    )


def _degradation(
    items: Items, ceiling: _Measured, double: "np.ndarray", units: Units, bootstrap: Bootstrap
) -> Interval:
    """QWK of the second rater less that of the adapter, both on the doubly scored items."""
    if not double.any():
        return undefined("no item has a second rating")
    ours = _measured(items, items.adapter, double, units, replace(bootstrap, statistics=("qwk",)))
    reason = ceiling.reasons.get("qwk") or ours.reasons.get("qwk")
    if reason:
        return undefined(reason)
    value = ceiling.points["qwk"] - ours.points["qwk"]
    if "qwk" not in ceiling.resampled:
        return figure(value)
    resampled = ceiling.resampled["qwk"] - ours.resampled["qwk"]
    return difference_interval(value, resampled, confidence_level=bootstrap.confidence_level)


def measure_scores(items: Items, scored: Array, why_not: str) -> Agreement:
    """One more scorer without intervals; NaN in `scored` where it has none, `why_not` if that is everywhere."""
    has = ~np.isnan(scored)
    if not has.any():
        reasons = dict.fromkeys((*STATISTICS, *QUESTION_STATISTICS), why_not)
        return _agreement(_Measured({}, {}, reasons), 0, undefined(why_not), None)
    chosen = items.where(np.flatnonzero(has).tolist())
    none = Bootstrap(0, 0.95, 0, ())
    measured = _measured(chosen, scored[has], np.ones(len(chosen), dtype=bool), chosen.units(), none)
    return _agreement(measured, len(chosen), _prmse(chosen, scored[has], None), None)


def _measured(items: Items, scored: Array, chosen: "np.ndarray", units: Units, bootstrap: Bootstrap) -> _Measured:
    """Figures of `scored` on the `chosen` items; the draws are over all items' units, so they are paired."""
    terms = agreement.moments(items.human, scored, items.step) * chosen[:, None]
    points = points_of(items.human[chosen], scored[chosen], items.step[chosen])
    reasons = {n: why_undefined(n, items.human[chosen]) for n, v in points.items() if np.isnan(v)}
    questions = numbered(items.questions)
    over_questions = _over_questions(sums_by(questions, terms))
    points |= dict(zip(QUESTION_STATISTICS, map(float, over_questions), strict=True))
    for name in QUESTION_STATISTICS:
        if np.isnan(points[name]):
            reasons[name] = "undefined in every question" if chosen.any() else "no items"
    ways = [_resampled(terms, questions, codes, bootstrap) for codes in units.ways] if chosen.any() else []
    worth = units.worth(chosen)
    resampled = {n: Resampled(tuple(way[n] for way in ways), units.counts, worth) for n in (ways[0] if ways else ())}
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


def _prmse(items: Items, scored: Array, bootstrap: Bootstrap | None) -> Interval:
    """Of one scorer; n/a where too few second ratings tell how far the raters err."""
    doubles = int((~np.isnan(items.rater2)).sum())
    if doubles < MIN_DOUBLES:
        return undefined(f"PRMSE needs {MIN_DOUBLES} items with a second rating, there are {doubles}")
    terms = agreement.double_moments(items.human, items.rater2, scored)
    value = float(agreement.prmse(terms.sum(0)))
    if np.isnan(value):
        return undefined("the raters' own error leaves no variance of true scores")
    if bootstrap is None or "prmse" not in bootstrap.statistics:
        return figure(value)
    units, draw = items.units(), {"resamples": bootstrap.resamples, "seed": bootstrap.seed}
    ways = tuple(agreement.prmse(resampled_sums(terms, codes, **draw)) for codes in units.ways)
    resampled = Resampled(ways, units.counts, units.worth(np.ones(len(items), dtype=bool)))
    return interval(value, resampled, confidence_level=bootstrap.confidence_level, bounds=(-INFINITE, INFINITE))


def measure_expected(items: Items, expected: Array, bootstrap: Bootstrap) -> Expected:
    """The scores that a model expects, no whole points, against the human ones."""
    few = replace(bootstrap, statistics=("pearson", "rmse", "prmse"))
    measured = _measured(items, expected, np.ones(len(items), dtype=bool), items.units(), few)
    pearson, rmse = (_figure(name, measured, few) for name in ("pearson", "rmse"))
    return Expected(pearson=pearson, rmse=rmse, prmse=_prmse(items, expected, few))


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
