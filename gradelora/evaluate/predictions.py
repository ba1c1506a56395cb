"""What base and adapter say about one item, beside what its human raters said."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen, Split
from gradelora.evaluate.candidates import Candidates, Likelihoods

FILE = "predictions.jsonl"
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


class Prediction(Frozen):
    """One line of predictions.jsonl."""

    item_id: str
    record_id: str
    question_key: str
    split: Split
    group: str | None
    score: float
    max_score: float
    rater2_score: float | None
    step: float
    scores: tuple[float, ...]
    base_score: float
    base_expected: float
    base_confidence: float
    base_mass: float
    base_greedy: float | None
    base_log_probabilities: tuple[float, ...]
    adapter_score: float
    adapter_expected: float
    adapter_confidence: float
    adapter_mass: float
    adapter_greedy: float | None
    adapter_log_probabilities: tuple[float, ...]


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


def named(prefix: str, view: Opinion) -> dict[str, Any]:
    """The fields of a Prediction that one model fills."""
    return {f"{prefix}_{name}": value for name, value in view}


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One JSON a line, in the given order."""
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(prediction.model_dump_json() + "\n")


def read_predictions(path: Path) -> Sequence[Prediction]:
    """All of a predictions.jsonl."""
    with path.open(encoding="utf-8") as file:
        return [Prediction.model_validate_json(line) for line in file]
