"""Agreement with the raters on the validation split while training goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from gradelora.artifacts import EncodedDataset
from gradelora.errors import BadData
from gradelora.scoring.candidates import Candidates, read_candidates
from gradelora.scoring.held_out import HeldOut, read_held_out
from gradelora.scoring.likelihood import score_share
from gradelora.scoring.opinion import opinion

DIGITS = 6


@dataclass(frozen=True)
class Judge:
    """The validation items; each rank scores its share, every rank is told the result."""

    items: tuple[HeldOut, ...]
    candidates: Mapping[str, Candidates]
    pad_id: int
    rows_per_pass: int

    @classmethod
    def read(cls, data: EncodedDataset, rows_per_pass: int) -> "Judge":
        """Raises BadData where all raters gave one and the same score: no chance agreement to beat."""
        items = tuple(read_held_out(data, ("validation",)))
        if len({item.score for item in items}) < 2:
            raise BadData(
                f"{data.path}: all {len(items)} validation items have one score, so that QWK says nothing; "
                "set train.best=validation_loss, or raise validation.split.validation_share"
            )
        return cls(items, read_candidates(data.path), data.pad_token_id, rows_per_pass)

    def qwk(self, model: Any, *, rank: int, ranks: int) -> float:
        """QWK of the likeliest scores, in points over all questions.  All ranks must call."""
        found = score_share(
            model,
            [item.prompt for item in self.items],
            self.candidates,
            pad_id=self.pad_id,
            rows_per_pass=self.rows_per_pass,
            rank=rank,
            ranks=ranks,
        )
        mine = [(self.items[place], likelihoods) for place, likelihoods in sorted(found.items())]
        pairs = [(item.score, opinion(self.candidates[item.question_key], said).score) for item, said in mine]
        return quadratic_weighted_kappa([pair for part in _gathered(pairs) for pair in part])


def quadratic_weighted_kappa(pairs: Sequence[tuple[float, float]]) -> float:
    """1 - mean squared difference / that of independent raters (Cohen 1968), of (human, scored) pairs.

    The human scores must differ.
    """
    n = len(pairs)
    mean_x, mean_y = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    observed = sum((x - y) ** 2 for x, y in pairs) / n
    variances = sum((x - mean_x) ** 2 + (y - mean_y) ** 2 for x, y in pairs) / n
    return round(1 - observed / (variances + (mean_x - mean_y) ** 2), DIGITS)


def _gathered(pairs: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The pairs of every rank, in the order of ranks."""
    if not dist.is_initialized():
        return [pairs]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, pairs)
    return parts
