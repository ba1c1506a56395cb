"""From resamples to intervals.

With few questions a percentile interval is too narrow twice over: the bootstrap variance is too
small by (Q - 1) / Q, and a normal quantile stands where Student's t with Q - 1 degrees belongs.
Levels get the expanded percentile interval (Hesterberg 2015, "What teachers should know about
the bootstrap", 5.3), which moves the percentiles outwards for both (with 10 questions from 2.5 %
to 0.86 %) and stays within the figure's own bounds.  Differences, on which the gate decides, get
the t interval with the bootstrap's standard error (same paper, 5.2), corrected likewise.

Where questions and students cross, the squared standard error is that by question plus that by
student less that by item, which both contain (Cameron, Gelbach & Miller 2011, "Robust inference
with multiway clustering", with the bootstrap for each of the three), no less than the larger of
the first two; t has the degrees of the smaller number of units.  Drawing both at once (Owen 2007,
"The pigeonhole bootstrap") counts the items' own error three times: of simulated differences with
10 questions and 14 students the standard deviation is .074, this error .074, Owen's .108.  A
level's percentiles by question are moved outwards by the ratio of the two standard errors.

Units of unequal size count as the fewer equal ones that they are worth (gradelora.evaluate.resampling):
where one question has 400 answers and 19 have 20 each, t with 19 degrees errs twice as often as it may.

`bench/simulate_gate.py` prints how often the gate errs.
"""

import functools
from dataclasses import dataclass

import numpy as np

from gradelora.artifacts import Interval
from gradelora.evaluate.agreement import Array

# More undefined resamples than this and the rest no longer stands for the whole.
MAX_UNDEFINED_SHARE = 0.05
# Below one degree of freedom t has no mean and an interval says nothing.
MIN_WORTH = 2.0
DIGITS = 6


@dataclass(frozen=True)
class Resampled:
    """A figure under the resamples of each way, [B] each, and the number of units of each way.

    One way, or three: by question, by student, by the cell in which they meet.  `worth` is the
    number of equal units from which t takes its degrees.
    """

    ways: tuple[Array, ...]
    counts: tuple[int, ...]
    worth: float

    def __sub__(self, other: "Resampled") -> "Resampled":
        """A paired difference: both from the same draws."""
        return Resampled(tuple(a - b for a, b in zip(self.ways, other.ways, strict=True)), self.counts, self.worth)

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard error of each way, corrected for the bootstrap's too small variance."""
        pairs = zip(self.ways, self.counts, strict=True)
        return tuple(float(np.nanstd(way, ddof=1)) * float(np.sqrt(n / (n - 1))) for way, n in pairs)

    @property
    def error(self) -> float:
        """The standard error."""
        if len(self.ways) == 1:
            return self.errors[0]
        question, student, item = self.errors
        return float(np.sqrt(max(question**2 + student**2 - item**2, question**2, student**2)))


def expanded_tail(confidence_level: float, units: float) -> float:
    """The lower tail's share of resamples: Phi(-sqrt(n / (n - 1)) t), n units (Hesterberg 2015)."""
    from scipy import stats

    t = t_quantile(confidence_level, units)
    return float(stats.norm.cdf(-np.sqrt(units / (units - 1)) * t))


def interval(value: float, resampled: Resampled, *, confidence_level: float, bounds: tuple[float, float]) -> Interval:
    """`value` with the expanded percentile interval of its resamples, within the figure's own bounds."""
    why_not, reason = _usable(resampled)
    if why_not:
        return figure(value, why_not)
    first = resampled.ways[0]
    tail = expanded_tail(confidence_level, resampled.worth)
    low, high = np.quantile(first[~np.isnan(first)], [tail, 1 - tail])
    if len(resampled.ways) > 1 and resampled.errors[0] > 0:
        wider = resampled.error / resampled.errors[0]
        low, high = value - (value - low) * wider, value + (high - value) * wider
    low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(value=rounded(value), low=rounded(low), high=rounded(high), reason=reason)


def difference_interval(value: float, resampled: Resampled, *, confidence_level: float) -> Interval:
    """`value`, a paired difference, +- t times its standard error."""
    why_not, reason = _usable(resampled)
    if why_not:
        return figure(value, why_not)
    reach = t_quantile(confidence_level, resampled.worth) * resampled.error
    return Interval(value=rounded(value), low=rounded(value - reach), high=rounded(value + reach), reason=reason)


# Questions of as many students ask for the same again and again; scipy takes as long as a small bootstrap.
@functools.lru_cache(maxsize=1024)
def t_quantile(confidence_level: float, units: float) -> float:
    """How many standard errors a difference's interval reaches to either side."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence_level) / 2, units - 1))


def _usable(resampled: Resampled) -> tuple[str, str]:
    """(why there is no interval, what is to be said about it): both may be empty."""
    if min(resampled.counts[:2]) < 2:
        return "no interval: a single unit cannot be resampled", ""
    if resampled.worth < MIN_WORTH:
        return "no interval: nearly all items are of one unit", ""
    undefined, drawn = max((int(np.isnan(way).sum()), len(way)) for way in resampled.ways)
    spelled = f"undefined in {undefined} of {drawn} resamples"
    if undefined > MAX_UNDEFINED_SHARE * drawn:
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
