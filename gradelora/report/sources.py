"""What the page reads out of the artifacts' folders."""

import json
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.report.plots import Point

CUT = 110


class Question(Frozen):
    """A question as people call it: its id where it has one, its text cut to a line."""

    name: str
    text: str


def read_json(path: Path) -> Any:
    """One JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_history(folder: Path) -> tuple[list[Point], list[Point]]:
    """(step, loss) in training and on the validation split, of an Adapter's folder."""
    rows = read_json(folder / "history.json")
    train = [(float(r["step"]), float(r["loss"])) for r in rows if r.get("loss") is not None]
    validation = [(float(r["step"]), float(r["validation_loss"])) for r in rows if r.get("validation_loss") is not None]
    return train, validation


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """The lines of an EvalReport's predictions.jsonl."""
    with (folder / "predictions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_questions(folder: Path) -> dict[str, Question]:
    """question_key -> how to call it, from a ValidatedRecords' items.arrow."""
    import pyarrow as pa

    with pa.memory_map(str(folder / "items.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        first = table.select(["question_key", "question_id", "question"]).group_by("question_key", use_threads=False)
        rows = first.aggregate([("question_id", "first"), ("question", "first")]).to_pylist()
    return {
        r["question_key"]: Question(
            name=r["question_id_first"] or r["question_key"][:8], text=_cut(r["question_first"], CUT)
        )
        for r in sorted(rows, key=lambda r: r["question_key"])
    }


def read_answers(folder: Path, item_ids: set[str]) -> dict[str, str]:
    """item_id -> the student's answer, for these items alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.memory_map(str(folder / "items.arrow")) as source:
        table = pa.ipc.open_file(source).read_all().select(["item_id", "answer"])
        rows = table.filter(pc.is_in(table["item_id"], pa.array(sorted(item_ids)))).to_pylist()
    return {r["item_id"]: r["answer"] for r in rows}


def _cut(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
