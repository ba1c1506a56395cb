"""Bootstrap intervals from resampled sums.

What is resampled are whole questions (the cluster bootstrap, Davison & Hinkley 1997, 3.8): the
items of one question share its rubric and its difficulty, so they are no independent
observations.  Base, adapter and second rater are read from the same resamples, so a difference
is paired.

With few questions a percentile interval is too narrow twice over: the bootstrap variance is too
small by (Q - 1) / Q, and a normal quantile stands where Student's t with Q - 1 degrees belongs.
Levels get the expanded percentile interval (Hesterberg 2015, "What teachers should know about
the bootstrap", 5.3), which moves the percentiles outwards for both (with 10 questions from 2.5 %
to 0.86 %) and stays within the figure's own bounds.  Differences, on which the gate decides, get
the t interval with the bootstrap's standard error (same paper, 5.2), corrected likewise: of
simulated pairs of equally good models with 10 questions, plain percentiles call 5.9 % better,
expanded ones 3.5 %, BCa 4.0 %, this one 2.5 %, as it should.
`bench/bench_evaluate.py --simulate` prints the present figures.

Below MIN_QUESTIONS there is nothing to resample: then records (one student's paper) are
resampled instead, and the interval speaks of these questions alone.
"""

from typing import Any, Literal

import numpy as np

from gradelora.artifacts import Interval
from gradelora.evaluate.agreement import Array

MIN_QUESTIONS = 5
# Resamples are drawn in blocks of about this many numbers: 32 MB.
BLOCK = 4_000_000
# More undefined resamples than this and the rest no longer stands for the whole.
MAX_UNDEFINED_SHARE = 0.05
DIGITS = 6
Unit = Literal["question", "record"]
Codes = np.ndarray[Any, np.dtype[np.int64]]


def resampled_sums(terms: Array, units: Codes, *, resamples: int, seed: int) -> Array:
    """Sums of `terms[N, C]` over items, `resamples` times, units drawn with replacement: [B, C].

    `units[N]` numbers each item's unit from 0 without gaps.  The same seed and units give the
    same draws, whatever the terms.
    """
    count = int(units.max()) + 1
    by_unit = np.zeros((count, terms.shape[1]))
    np.add.at(by_unit, units, terms)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // count)
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.integers(0, count, size=(size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        parts.append(weights.astype(np.float64) @ by_unit)
    return np.concatenate(parts)


def expanded_tail(confidence_level: float, units: int) -> float:
    """The lower tail's share of resamples: Phi(-sqrt(n / (n - 1)) t), n units (Hesterberg 2015)."""
    from scipy import stats

    t = stats.t.ppf((1 + confidence_level) / 2, units - 1)
    return float(stats.norm.cdf(-np.sqrt(units / (units - 1)) * t))


def interval(value: float, resampled: Array, *, confidence_level: float, units: int) -> Interval:
    """`value` with the expanded percentile interval of its resamples [B]."""
    why_not, reason = _usable(resampled, units)
    if why_not:
        return figure(value, why_not)
    tail = expanded_tail(confidence_level, units)
    low, high = np.quantile(resampled[~np.isnan(resampled)], [tail, 1 - tail])
    return Interval(value=rounded(value), low=rounded(low), high=rounded(high), reason=reason)


def difference_interval(value: float, resampled: Array, *, confidence_level: float, units: int) -> Interval:
    """`value`, a paired difference, +- t times the standard error of its resamples [B]."""
    from scipy import stats

    why_not, reason = _usable(resampled, units)
    if why_not:
        return figure(value, why_not)
    error = float(np.nanstd(resampled, ddof=1)) * np.sqrt(units / (units - 1))
    reach = float(stats.t.ppf((1 + confidence_level) / 2, units - 1)) * error
    return Interval(value=rounded(value), low=rounded(value - reach), high=rounded(value + reach), reason=reason)


def _usable(resampled: Array, units: int) -> tuple[str, str]:
    """(why there is no interval, what is to be said about it): both may be empty."""
    if units < 2:
        return "no interval: a single unit cannot be resampled", ""
    undefined = int(np.isnan(resampled).sum())
    spelled = f"undefined in {undefined} of {len(resampled)} resamples"
    if undefined > MAX_UNDEFINED_SHARE * len(resampled):
        return f"no interval: {spelled}", ""
    return "", spelled if undefined else ""


def figure(value: float, reason: str = "") -> Interval:
    """A value without an interval."""
    return Interval(value=rounded(value), low=None, high=None, reason=reason)


def undefined(reason: str) -> Interval:
    """n/a, and why."""
    return Interval(value=None, low=None, high=None, reason=reason)


def rounded(value: float) -> float:
    """Six decimals: what survives another order of summation; no minus zero."""
    return round(float(value), DIGITS) + 0.0


def numbered(names: list[str]) -> Codes:
    """Codes 0.. of names, by their order: int64[N]."""
    codes = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([codes[name] for name in names], dtype=np.int64)
