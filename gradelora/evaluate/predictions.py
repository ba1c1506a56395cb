"""What base and adapter say about one item, beside what its human raters said."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen, Split
from gradelora.scoring.opinion import Opinion

FILE = "predictions.jsonl"


class Prediction(Frozen):
    """One line of predictions.jsonl.

    `student` numbers the students of the held-out items in the order in which they come; it
    cannot be led back to the name that the data give them.
    """

    item_id: str
    record_id: str
    question_key: str
    split: Split
    student: int | None
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
