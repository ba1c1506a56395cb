"""What is asked, which scores are allowed, and what a model says about them."""

import json
from dataclasses import dataclass
from pathlib import Path

from gradelora.artifacts import Frozen

FILE = "candidates.json"


class Candidates(Frozen):
    """The allowed scores of a question, ascending, and the ids of each as a whole target."""

    max_score: float
    step: float
    scores: tuple[float, ...]
    targets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Prompt:
    """ids[L] up to where the target starts; the first `prefix_length` are the question's."""

    ids: tuple[int, ...]
    prefix_length: int
    question_key: str


@dataclass(frozen=True)
class Likelihoods:
    """One item: the log-probability of each candidate, rounded, and what greedy decoding would say.

    `greedy` is the candidate that always choosing the likeliest token of the whole vocabulary
    would spell, None where it would spell no allowed score.
    """

    log_probabilities: tuple[float, ...]
    greedy: int | None


def read_candidates(folder: Path) -> dict[str, Candidates]:
    """`candidates.json` of an EncodedDataset, by question_key."""
    read = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return {key: Candidates.model_validate(value) for key, value in read.items()}
