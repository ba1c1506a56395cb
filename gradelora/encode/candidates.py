"""The scores that may be given to each question.

A question's scores run from 0 to its maximum in steps: the coarsest of STEPS on which all
scores of its train items lie.  A question without train items takes the finest step of all
train questions: it may be scored by the same raters.  Scores of other splits are not looked
at, so the grid tells nothing about what is held out.  The maximum and every score seen in
train are candidates even where they lie off the grid.  A grid of more than GRID_LIMIT scores
is not made: there 0, the maximum and the scores seen are the candidates.
"""

from typing import Any

import pyarrow as pa

from gradelora.artifacts import canonical_json
from gradelora.prompt.layout import Layout
from gradelora.scoring.grid import DECIMALS, STEPS, coarsest_step, grid


class Candidates:
    """Maxima of all questions and the scores that train shows, gathered batch by batch."""

    def __init__(self) -> None:
        self._max_scores: dict[str, float] = {}
        self._train_scores: dict[str, set[float]] = {}

    def see(self, items: pa.RecordBatch) -> None:
        """Take note of a batch of items.arrow."""
        columns = (items.column(name).to_pylist() for name in ("question_key", "max_score", "score", "split"))
        for key, max_score, score, split in zip(*columns, strict=True):
            self._max_scores[key] = max_score
            if split == "train":
                self._train_scores.setdefault(key, set()).add(round(score, DECIMALS))

    def to_json(self, layout: Layout) -> str:
        """{question_key: {max_score, step, scores, targets}}, canonical."""
        steps = {key: coarsest_step(scores) for key, scores in self._train_scores.items()}
        finest = min(steps.values(), default=STEPS[0])
        encoded: dict[float, list[int]] = {}
        found: dict[str, dict[str, Any]] = {}
        for key, max_score in self._max_scores.items():
            step = steps.get(key, finest)
            scores = grid(max_score, step, self._train_scores.get(key, set()))
            for score in scores:
                if score not in encoded:
                    encoded[score] = layout.candidate(score)
            targets = [encoded[score] for score in scores]
            found[key] = {"max_score": max_score, "step": step, "scores": scores, "targets": targets}
        return f"{canonical_json(found)}\n"
