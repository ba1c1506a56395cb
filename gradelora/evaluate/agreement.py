"""How well two sets of scores agree, from weighted sums over items.

Everything here follows from a few sums, so one matrix product gives it for thousands of bootstrap
resamples at once.  `evaluate.metrics` takes the point estimates from scikit-learn
and scipy; the tests hold both to each other.

Quadratic weighted kappa.  With weights (i - j)^2 the scale's length cancels, and

    QWK = 1 - mean((x - y)^2) / (var x + var y + (mean x - mean y)^2)

with population variances: the denominator is the expected squared difference of independent
raters (Cohen 1968; equal to Lin's concordance coefficient 1989).  It therefore knows half
points, and questions with different maxima have a common scale: points.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
COLUMNS = ("n", "x", "y", "xx", "yy", "dd", "d", "exact", "adjacent", "step")
# QWK reads the first ones alone.
QWK_COLUMNS = 6
_N, _X, _Y, _XX, _YY, _DD, _D, _EXACT, _ADJACENT, _STEP = range(len(COLUMNS))
# Half points and sums of them are exact in float64; means of expected scores are not.
EPSILON = 1e-9


def moments(human: Array, scored: Array, step: Array) -> Array:
    """The sums' terms of each item: float64[N, 10].  `step` is the item's own scale step."""
    off = np.abs(human - scored)
    return np.stack(
        [
            np.ones_like(human),
            human,
            scored,
            human * human,
            scored * scored,
            off * off,
            off,
            off < EPSILON,
            off <= 1 + EPSILON,
            off <= step + EPSILON,
        ],
        axis=-1,
    ).astype(np.float64)


def squared_difference(sums: Array) -> Array:
    """Sum over items of the squared difference: [...]."""
    return sums[..., _DD]


def expected_difference(sums: Array) -> Array:
    """Sum over items of the squared difference that independent raters would show: [...]."""
    n = sums[..., _N]
    return sums[..., _XX] + sums[..., _YY] - 2 * ratio(sums[..., _X] * sums[..., _Y], n)


def qwk(sums: Array) -> Array:
    """NaN where both raters give one and the same score throughout: no chance agreement to beat."""
    expected = expected_difference(sums)
    return 1 - ratio(sums[..., _DD], np.where(expected > EPSILON, expected, 0))


def exact(sums: Array) -> Array:
    """Share of equal scores."""
    return ratio(sums[..., _EXACT], sums[..., _N])


def adjacent(sums: Array) -> Array:
    """Share within one point (rsmtool `agreement(tolerance=1)`; Williamson, Xi & Breyer 2012)."""
    return ratio(sums[..., _ADJACENT], sums[..., _N])


def within_step(sums: Array) -> Array:
    """Share within one step of the item's own scale: half a point where there are half points."""
    return ratio(sums[..., _STEP], sums[..., _N])


def mae(sums: Array) -> Array:
    """Mean absolute error in points."""
    return ratio(sums[..., _D], sums[..., _N])


def rmse(sums: Array) -> Array:
    """Root mean squared error in points."""
    return np.sqrt(ratio(sums[..., _DD], sums[..., _N]))


def pearson(sums: Array) -> Array:
    """NaN where either gives one score throughout."""
    n = sums[..., _N]
    vx, vy = _squares(sums, _X, _XX), _squares(sums, _Y, _YY)
    cross = (sums[..., _XX] + sums[..., _YY] - sums[..., _DD]) / 2 - ratio(sums[..., _X] * sums[..., _Y], n)
    return np.clip(ratio(cross, np.sqrt(vx * vy)), -1, 1)


def smd(sums: Array) -> Array:
    """Standardised mean difference, scored minus human, over the pooled standard deviation.

    sqrt((sd_human^2 + sd_scored^2) / 2) with n - 1 (Williamson, Xi & Breyer 2012; rsmtool's
    method "pooled").  NaN below two items or where nothing varies.
    """
    n = sums[..., _N]
    difference = ratio(sums[..., _Y] - sums[..., _X], n)
    pooled = np.sqrt(ratio(_squares(sums, _X, _XX) + _squares(sums, _Y, _YY), 2 * (n - 1)))
    return ratio(difference, pooled)


STATISTICS = {
    "qwk": qwk,
    "exact": exact,
    "adjacent": adjacent,
    "within_step": within_step,
    "pearson": pearson,
    "mae": mae,
    "rmse": rmse,
    "smd": smd,
}


def double_moments(human: Array, rater2: Array, scored: Array) -> Array:
    """The terms of PRMSE's sums of each item: float64[N, 8].  `rater2` is NaN where there is no second rating."""
    double = ~np.isnan(rater2)
    counts = 1.0 + double
    means = np.where(double, (human + np.nan_to_num(rater2)) / 2, human)
    # The variance of two ratings with n - 1 is half their squared difference.
    spread = np.where(double, (human - np.nan_to_num(rater2)) ** 2 / 2, 0)
    off = counts * (means - scored) ** 2
    columns = [np.ones_like(human), double, counts, counts**2, counts * means, counts * means**2, spread, off]
    return np.stack(columns, axis=-1).astype(np.float64)


def prmse(sums: Array) -> Array:
    """Proportional reduction in mean squared error against the true score, from sums of `double_moments`: [...].

    Loukina et al. 2020 ("Using PRMSE to evaluate automated scoring systems in the presence of label
    noise"), as rsmtool's prmse_true: the raters' error variance is taken from the doubly scored
    items.  NaN where none is, or where the raters' own error leaves no variance of true scores.
    """
    items, doubles, ratings, squared_counts, total, squares, spread, off = np.moveaxis(sums, -1, 0)
    error_variance = ratio(spread, doubles)
    between = squares - ratio(total**2, ratings) - (items - 1) * error_variance
    true_variance = ratio(between, ratings - ratio(squared_counts, ratings))
    error = ratio(off - items * error_variance, ratings)
    return 1 - ratio(error, np.where(true_variance > EPSILON, true_variance, 0))


def _squares(sums: Array, first: int, second: int) -> Array:
    """Sum of squared deviations from the mean, 0 where it is rounding alone."""
    squares = sums[..., second] - ratio(sums[..., first] ** 2, sums[..., _N])
    return np.where(squares > EPSILON, squares, 0)


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where `below` is 0 or less: undefined, never 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
