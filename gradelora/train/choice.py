"""Which step's adapter comes out, and when more training is no longer worth it.

Both follow from the Trainer's log alone, which every sealed checkpoint holds: a run that was
cut off chooses as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Best = Literal["last", "validation_loss", "validation_qwk"]
# By `train.best`: the Trainer's name of the figure, and the sign that makes more of it better.
FIGURES = {"validation_loss": ("eval_loss", -1.0), "validation_qwk": ("eval_qwk", 1.0)}


@dataclass(frozen=True)
class Standing:
    """The best evaluation so far: its step, how many there were, how many came after it."""

    step: int
    evaluations: int
    since: int


@dataclass(frozen=True)
class Choice:
    """`train.best` and `train.patience`."""

    best: Best
    patience: int | None

    @property
    def by_evaluation(self) -> bool:
        """Whether another adapter than the last step's may come out."""
        return self.best != "last"

    def standing(self, log: Sequence[Mapping[str, Any]]) -> Standing | None:
        """From the Trainer's log; of equal evaluations the first, None before there is any."""
        if self.best == "last":
            return None
        name, sign = FIGURES[self.best]
        found = [(entry["step"], float(entry[name])) for entry in log if name in entry]
        if not found:
            return None
        worth = [-math.inf if math.isnan(figure) else sign * figure for _, figure in found]
        at = worth.index(max(worth))
        return Standing(found[at][0], len(found), len(found) - 1 - at)

    def exhausted(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether so many evaluations came after the best one that training ends."""
        standing = self.standing(log)
        return standing is not None and self.patience is not None and standing.since >= self.patience

    def notes(self, log: Sequence[Mapping[str, Any]], steps: int, planned: int) -> dict[int, dict[str, str]]:
        """What history.json says at which step: the one that was chosen, and why training ended early."""
        standing = self.standing(log)
        if standing is None:
            return {}
        degree = "lowest" if FIGURES[self.best][1] < 0 else "highest"
        notes = {standing.step: {"chosen": f"the {degree} {self.best} of {standing.evaluations} evaluations"}}
        if steps < planned:
            why = f"{standing.since} evaluations without a better {self.best}, after step {steps} of {planned}"
            notes.setdefault(steps, {})["stopped"] = why
        return notes
