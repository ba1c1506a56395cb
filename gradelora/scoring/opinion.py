"""From log-probabilities to a score and what the model thinks of it."""

import math

from gradelora.artifacts import Frozen
from gradelora.scoring.candidates import Candidates, Likelihoods

DIGITS = 6


class Opinion(Frozen):
    """One model's view of one item.

    `score` is the likeliest allowed score, `expected` the mean over their probabilities,
    `confidence` the probability of `score`, `mass` what all allowed scores together get of
    everything that the model could have written, `greedy` what greedy decoding would write
    (None: no allowed score).  `log_probabilities` stand in the order of the item's scores.
    """

    score: float
    expected: float
    confidence: float
    mass: float
    greedy: float | None
    log_probabilities: tuple[float, ...]


def opinion(candidates: Candidates, likelihoods: Likelihoods) -> Opinion:
    """From log-probabilities to a score; of equally likely scores the lowest.

    Probabilities are those given that the answer is an allowed score (a softmax over the
    candidates), from the rounded log-probabilities: the file alone reproduces the decision.
    """
    logs = likelihoods.log_probabilities
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    total = sum(weights)
    best = logs.index(top)
    return Opinion(
        score=candidates.scores[best],
        expected=round(sum(w * s for w, s in zip(weights, candidates.scores, strict=True)) / total, DIGITS),
        confidence=round(weights[best] / total, DIGITS),
        mass=round(min(1.0, sum(math.exp(value) for value in logs)), DIGITS),
        greedy=None if likelihoods.greedy is None else candidates.scores[likelihoods.greedy],
        log_probabilities=logs,
    )
