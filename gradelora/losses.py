"""Which questions and groups refuse an adapter: losses that chance among so many parts does not explain.

A part refuses where three things hold: it loses more than `gate.max_question_loss`, its own interval
lies below 0, and its p stays significant after Holm's correction at a family-wise `gate.family_error`.
Questions are one family; groups, which hold the same items again, are another.

Each interval alone errs in one part out of 40, and answers are few: of 60 questions with 20 answers,
one is found to lose so much between scorers that are equally good in each.  The correction keeps the
chance that any refuses at `gate.family_error`, whatever the number of parts and however they depend
on each other.  What it lets go is no proof of harmlessness: it is listed as doubtful, with the number
that chance alone is expected to make.  `bench/simulate_gate.py` prints both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gradelora.artifacts import Interval
from gradelora.comparison import Comparison, PartGain
from gradelora.config import GateConfig

MIN_ITEMS = 10


@dataclass(frozen=True)
class Losses:
    """`proven` refuse.  `doubtful` lose as much without that proof.

    Of the `tested` parts, `by_chance` are expected to lose as much with an interval below 0 where
    the two scorers are equally good.
    """

    proven: tuple[PartGain, ...]
    doubtful: tuple[PartGain, ...]
    tested: int
    by_chance: float


def judged(part: PartGain) -> bool:
    """Whether a part is large enough to refuse."""
    return part.items >= MIN_ITEMS and part.gain.value is not None


def losses_of(config: GateConfig, comparison: Comparison) -> Losses:
    """The judged parts that lose more than is allowed, and how surely."""
    enough, level = [part for part in comparison.parts if judged(part)], comparison.confidence_level
    tested = [part for part in enough if standard_error(part.gain, level, part.worth) is not None]
    significant = []
    for kind in ("question", "group"):
        family = [part for part in tested if part.kind == kind]
        fell = holm([loss_p(part, level) for part in family], config.family_error)
        significant += [part for part, falls in zip(family, fell, strict=True) if falls]
    large = [part for part in enough if -(part.gain.value or 0.0) > config.max_question_loss]
    proven = tuple(part for part in large if alone_below_0(part) and part in significant)
    return Losses(
        proven=proven,
        doubtful=tuple(part for part in large if part not in proven),
        tested=len(tested),
        by_chance=round(sum(_by_chance(config, part, level) for part in tested), 4),
    )


def holm(p_values: Sequence[float], level: float) -> tuple[bool, ...]:
    """Which of m null hypotheses fall at a family-wise error of `level`.

    The smallest p is held against level / m, the next against level / (m - 1), until one is larger:
    that one stands, and all after it (Holm 1979, "A simple sequentially rejective multiple test
    procedure").
    """
    fell = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for passed, at in enumerate(order):
        if p_values[at] > level / (len(order) - passed):
            break
        fell[at] = True
    return tuple(fell)


def alone_below_0(part: PartGain) -> bool:
    """Whether the part's own interval shows a loss, no other part being looked at."""
    return part.gain.high is not None and part.gain.high < 0


def worth_a_look(doubtful: Sequence[PartGain]) -> list[PartGain]:
    """Those that would refuse if nothing else had been looked at, the worst first."""
    return sorted(filter(alone_below_0, doubtful), key=lambda part: part.gain.value or 0.0)


def loss_p(part: PartGain, confidence_level: float) -> float:
    """One-sided p of a part that loses nothing, by the t of its interval.

    It is half of 1 - `confidence_level` where the interval's upper end is 0.  The part has an interval.
    """
    from scipy import stats

    value, error = part.gain.value or 0.0, standard_error(part.gain, confidence_level, part.worth)
    if not error:
        # Every resample shows the same: base and adapter each give one score, or none errs.
        return 0.0 if value < 0 else 1.0
    return float(stats.t.cdf(value / error, part.worth - 1))


def standard_error(gain: Interval, confidence_level: float, worth: float) -> float | None:
    """The standard error that a difference's interval was made with (`difference_interval`); None without one."""
    from gradelora.evaluate.intervals import t_quantile

    if gain.value is None or gain.high is None:
        return None
    return (gain.high - gain.value) / t_quantile(confidence_level, worth)


def strictest_tail(config: GateConfig, confidence_level: float, tested: int) -> float:
    """The p at which the first of so many parts refuses: Holm's first step, within its own interval's tail."""
    return min(config.family_error / max(tested, 1), (1 - confidence_level) / 2)


def _by_chance(config: GateConfig, part: PartGain, confidence_level: float) -> float:
    """How probably a part of equally good scorers loses too much, with its own interval below 0."""
    from scipy import stats

    from gradelora.evaluate.intervals import t_quantile

    error = standard_error(part.gain, confidence_level, part.worth)
    if not error:
        return 0.0
    reach = max(config.max_question_loss / error, t_quantile(confidence_level, part.worth))
    return float(stats.t.cdf(-reach, part.worth - 1))
