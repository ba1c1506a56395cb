"""Which rows are set aside, and the reasons given for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradelora.artifacts import Frozen
from gradelora.records.columns import Flags, Rows
from gradelora.validate.codes import Level

_NUMBERS = ("score", "max_score", "normalized_score", "rater2_score")
_MEASURED = {
    "score_lt_0": "score {score:g} is below 0",
    "max_le_0": "max_score {max_score:g} is not above 0",
    "item_score_gt_max": "score {score:g} is above max_score {max_score:g}",
    "record_score_gt_max": "score {score:g} is above max_score {max_score:g}",
    "norm_mismatch": "normalized_score {normalized_score:g} is not score {score:g} / max_score {max_score:g}",
    "items_sum_gt_record": "the items' scores add up to more than the record's {score:g}",
    "items_sum_lt_record": "the items' scores add up to less than the record's {score:g}",
    "no_items": "rubric_alignment is empty",
    "blank_answer_nonzero_score": "a blank answer has score {score:g}",
    "control_char": "a text holds a control character",
}


class Quarantined(Frozen):
    """One row set aside; `item_index` None for a whole record.  No student text."""

    file: str
    record_index: int
    item_index: int | None
    code: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """Rows, their flags, and the codes that the judge found failing with their counts."""

    rows: Rows
    flags: Flags
    failing: dict[str, int]

    def faulty(self, levels: dict[str, Level]) -> NDArray[np.bool_]:
        """Rows with a failing code of level quarantine, bool[n]."""
        marks = [self.flags[code] for code in self.failing if levels[code] == "quarantine"]
        return np.logical_or.reduce([np.zeros(self.rows.table.num_rows, dtype=bool), *marks])


def entries(checked: Checked, levels: dict[str, Level], names: list[str]) -> Iterator[Quarantined]:
    """One entry for each flagged row and code, in no order; `names` are the files'."""
    rows, table = checked.rows, checked.rows.table
    for code in checked.failing:
        if levels[code] != "quarantine":
            continue
        at = np.flatnonzero(checked.flags[code])
        wanted = [n for n in table.column_names if n in {*_NUMBERS, "file", "record_index", "item_index"}]
        for row, values in zip(at.tolist(), table.select(wanted).take(at).to_pylist(), strict=True):
            yield Quarantined(
                file=names[values["file"]],
                record_index=values["record_index"],
                item_index=values.get("item_index"),
                code=code,
                reason=rows.reasons.get((row, code)) or _measured(code, values),
            )


def _measured(code: str, values: dict[str, float | None]) -> str:
    """The reason with the numbers that were measured; rater2_score where it is to blame."""
    score, top, second = values.get("score"), values.get("max_score"), values.get("rater2_score")
    if code == "item_score_gt_max" and second is not None and top is not None and not (score or 0) > top:
        return f"rater2_score {second:g} is above max_score {top:g}"
    if code == "score_lt_0" and second is not None and not (score is not None and score < 0):
        return f"rater2_score {second:g} is below 0"
    return _MEASURED[code].format(**{name: values.get(name) or 0.0 for name in _NUMBERS})


def write(path: Path, found: list[Quarantined]) -> None:
    """quarantine.jsonl, sorted by place and code."""
    found.sort(key=lambda e: (e.file, e.record_index, -1 if e.item_index is None else e.item_index, e.code))
    path.write_text("".join(f"{entry.model_dump_json()}\n" for entry in found), encoding="utf-8")
