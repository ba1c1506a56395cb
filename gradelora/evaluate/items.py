"""What agreement is measured on: columns over items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradelora.evaluate.agreement import Array
from gradelora.evaluate.predictions import Prediction
from gradelora.evaluate.resampling import Units, units_of


@dataclass(frozen=True)
class Items:
    """Columns over N items; `rater2` is NaN where there is none; `labels` are the scale's scores.

    `students` numbers who wrote the item, None where the data do not say.
    """

    questions: tuple[str, ...]
    records: tuple[str, ...]
    students: tuple[int | None, ...]
    human: Array
    rater2: Array
    base: Array
    adapter: Array
    step: Array
    labels: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.human)

    def where(self, chosen: Sequence[int]) -> "Items":
        """These items alone."""
        at = list(chosen)
        return Items(
            questions=tuple(self.questions[i] for i in at),
            records=tuple(self.records[i] for i in at),
            students=tuple(self.students[i] for i in at),
            human=self.human[at],
            rater2=self.rater2[at],
            base=self.base[at],
            adapter=self.adapter[at],
            step=self.step[at],
            labels=self.labels,
        )

    def units(self) -> Units:
        """What to resample."""
        return units_of(self.questions, self.records, self.students)


def items_of(predictions: Sequence[Prediction]) -> Items:
    """Columns of predictions."""
    return Items(
        questions=tuple(p.question_key for p in predictions),
        records=tuple(p.record_id for p in predictions),
        students=tuple(p.student for p in predictions),
        human=np.array([p.score for p in predictions], dtype=np.float64),
        rater2=np.array([np.nan if p.rater2_score is None else p.rater2_score for p in predictions], dtype=np.float64),
        base=np.array([p.base_score for p in predictions], dtype=np.float64),
        adapter=np.array([p.adapter_score for p in predictions], dtype=np.float64),
        step=np.array([p.step for p in predictions], dtype=np.float64),
        labels=tuple(sorted({s for p in predictions for s in p.scores})),
    )
