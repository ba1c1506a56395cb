"""Items of an EncodedDataset as they are asked about."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradelora.artifacts import EncodedDataset, Split
from gradelora.scoring.candidates import Prompt


@dataclass(frozen=True)
class HeldOut:
    """One item: ids[L] up to where its target starts, and what its raters said."""

    item_id: str
    record_id: str
    question_key: str
    split: Split
    student_id: str | None
    group: str | None
    score: float
    max_score: float
    rater2_score: float | None
    ids: tuple[int, ...]
    prefix_length: int

    @property
    def prompt(self) -> Prompt:
        """What the model is asked."""
        return Prompt(self.ids, self.prefix_length, self.question_key)


def read_held_out(data: EncodedDataset, splits: Sequence[Split]) -> list[HeldOut]:
    """The items of `splits`, in the order of splits and rows."""
    import datasets

    found = []
    for split in splits:
        if not getattr(data.splits, split):
            continue
        for row in datasets.load_from_disk(str(data.path / split)):
            found.append(
                HeldOut(
                    item_id=row["item_id"],
                    record_id=row["record_id"],
                    question_key=row["question_key"],
                    split=split,
                    student_id=row["student_id"],
                    group=row["group"],
                    score=row["score"],
                    max_score=row["max_score"],
                    rater2_score=row["rater2_score"],
                    ids=tuple(row["input_ids"][: row["prompt_length"]]),
                    prefix_length=row["prefix_length"],
                )
            )
    return found
