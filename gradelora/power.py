"""How probably items like these let a true gain pass the gate.

The first condition alone is a noncentral t: its noncentrality is the gain in true standard errors,
of which only a noisy estimate is known.  1 / s overestimates 1 / sigma, so it is shrunk by c(v)
(the constant that makes it unbiased for a normal sample).  v is half the degrees of freedom: QWK's
own standard error varies more than a normal sample's, as `bench/simulate_gate.py` shows.  The
second is that of no question appearing to lose too much although all gain alike; groups hold the
same items again, so they are left out.
"""

import math
from collections.abc import Sequence

from gradelora.artifacts import Interval
from gradelora.comparison import Comparison, PartGain
from gradelora.config import GateConfig

# Where units are so unequal that they are worth less than this share of their number, no t describes the gain.
MIN_EVENNESS = 0.5


def power(config: GateConfig, comparison: Comparison, judged: Sequence[PartGain]) -> float | None:
    """The probability that a true gain of `gate.expected_gain` is promoted; None where nothing can be said.

    `judged` are the questions and groups that are large enough to refuse.
    """
    from scipy import stats

    from gradelora.evaluate.intervals import t_quantile

    fewest = min(comparison.units, comparison.crossed_units or comparison.units)
    degrees, error = comparison.worth - 1, _error(comparison.gain, comparison.confidence_level, comparison.worth)
    if error is None or degrees <= 2 or comparison.worth < MIN_EVENNESS * fewest:
        return None
    shift = (config.expected_gain - config.margin) / error * _unbiased(degrees / 2)
    shown = float(stats.nct.sf(t_quantile(comparison.confidence_level, comparison.worth), degrees, shift))
    unharmed = math.prod(_unharmed(config, part, comparison.confidence_level) for part in judged)
    return round(shown * unharmed, 4)


def _unbiased(degrees: float) -> float:
    """What makes 1 / s an unbiased estimate of 1 / sigma."""
    return math.sqrt(2 / degrees) * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2))


def _unharmed(config: GateConfig, part: PartGain, confidence_level: float) -> float:
    """How probably a question that gains as the whole does is not shown to lose too much."""
    from scipy import special

    from gradelora.evaluate.intervals import t_quantile

    error = _error(part.gain, confidence_level, part.worth)
    if part.kind == "group" or error is None:
        return 1.0
    loss = max(config.max_question_loss, t_quantile(confidence_level, part.worth) * error)
    return float(special.ndtr((loss + config.expected_gain) / error))


def _error(gain: Interval, confidence_level: float, worth: float) -> float | None:
    """The standard error that the interval was made with."""
    from gradelora.evaluate.intervals import t_quantile

    if gain.value is None or gain.high is None or gain.high <= gain.value:
        return None
    return (gain.high - gain.value) / t_quantile(confidence_level, worth)
