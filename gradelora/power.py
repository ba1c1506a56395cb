"""How probably items like these let a true gain pass the gate.

The first condition alone is a noncentral t: its noncentrality is the gain in true standard errors,
of which only a noisy estimate is known.  1 / s overestimates 1 / sigma, so it is shrunk by c(v)
(the constant that makes it unbiased for a normal sample).  The noise also draws the power itself
towards the middle, for it is a curve: what one such error up or down would do to it once more is
taken off.  v is two thirds of the degrees of freedom: QWK's own standard error varies more than a
normal sample's, as `bench/simulate_gate.py` shows.

The second is that of no question being shown to lose too much although all gain alike, with Holm's
first step as the bound; groups hold the same items again, so they are left out.
"""

import math

from gradelora.comparison import Comparison
from gradelora.config import GateConfig
from gradelora.losses import judged, standard_error, strictest_tail

# Where units are so unequal that they are worth less than this share of their number, no t describes the gain.
MIN_EVENNESS = 0.5
# Of the degrees of freedom, the share that a standard error of QWK is as steady as.
STEADINESS = 2 / 3


def power(config: GateConfig, comparison: Comparison) -> float | None:
    """The probability that a true gain of `gate.expected_gain` is promoted; None where nothing can be said."""
    from scipy import stats

    from gradelora.evaluate.intervals import t_quantile

    level, worth = comparison.confidence_level, comparison.worth
    fewest = min(comparison.units, comparison.crossed_units or comparison.units)
    degrees, error = worth - 1, standard_error(comparison.gain, level, worth)
    if not error or STEADINESS * degrees <= 2 or worth < MIN_EVENNESS * fewest:
        return None
    unbiased, spread = _inverse_error(STEADINESS * degrees)
    shift = (config.expected_gain - config.margin) / error * unbiased
    shifts = [shift, shift * (1 + spread), shift * (1 - spread)]
    here, above, below = map(float, stats.nct.sf(t_quantile(level, worth), degrees, shifts))
    shown = min(max(2 * here - (above + below) / 2, 0.0), 1.0)
    return round(shown * _unharmed(config, comparison), 4)


def _inverse_error(degrees: float) -> tuple[float, float]:
    """What makes 1 / s an unbiased estimate of 1 / sigma, and the relative standard deviation of that estimate."""
    unbiased = math.sqrt(2 / degrees) * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2))
    return unbiased, math.sqrt(unbiased**2 * degrees / (degrees - 2) - 1)


def _unharmed(config: GateConfig, comparison: Comparison) -> float:
    """How probably no question that gains as the whole does is shown to lose too much."""
    from scipy import special

    from gradelora.evaluate.intervals import t_quantile

    level = comparison.confidence_level
    questions = [part for part in comparison.parts if part.kind == "question" and judged(part)]
    errors = [(part.worth, standard_error(part.gain, level, part.worth)) for part in questions]
    sized = [(worth, error) for worth, error in errors if error]
    corrected = 1 - 2 * strictest_tail(config, level, len(sized))
    losses = [max(config.max_question_loss, t_quantile(corrected, worth) * error) for worth, error in sized]
    chances = [(loss + config.expected_gain) / error for loss, (_, error) in zip(losses, sized, strict=True)]
    return math.prod(float(special.ndtr(chance)) for chance in chances)
