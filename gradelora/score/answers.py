"""New answers from data files: the format of the training data, its scores unused and optional."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from gradelora.artifacts import DataFiles
from gradelora.errors import BadData
from gradelora.records.identity import question_keys, questions
from gradelora.records.read import FileState, read_files
from gradelora.records.write import stems

SEVERAL = "its question_id stands with several questions, rubrics or maxima; give each an id of its own"
COLUMNS = ("question", "answer", "rubric", "max_score", "record_index", "item_index", "file")


@dataclass(frozen=True)
class Answer:
    """One answer to score; `fault` says why it cannot be."""

    item_id: str
    file: str
    record_index: int
    item_index: int
    question_key: str
    question: str
    answer: str
    rubric: str | None
    max_score: float
    fault: str = ""


def read_answers(data: DataFiles, max_bytes: int) -> list[Answer]:
    """Every item of every file, in the order of the data.

    Raises BadData for a file that cannot be read; an item that cannot be scored carries its fault, so
    does every answer under a question_id that stands with several questions, as training would be blocked.
    """
    tables = read_files(data, max_bytes)
    broken = [_spell(file) for file in tables.files if file.fault is not None]
    if broken:
        raise BadData("; ".join(broken))
    items = tables.items.table
    whole = np.array([_whole(row) for row in items.select(COLUMNS[:4]).to_pylist()], dtype=bool)
    fitting = items.filter(pa.array(whole))
    of_item = questions(fitting).of_item
    known = question_keys(fitting, of_item)
    keys = iter([known[question] for question in of_item])
    names = [file.name for file in tables.files]
    return _of_one_question(list(_answers(items.select(COLUMNS), whole, keys, names)))


def _of_one_question(answers: list[Answer]) -> list[Answer]:
    """The same, with a fault where a key does not say which question is meant."""
    meant: dict[str, set[tuple[str, str | None, float]]] = {}
    for a in answers:
        if not a.fault:
            meant.setdefault(a.question_key, set()).add((a.question, a.rubric, a.max_score))
    return [replace(a, fault=SEVERAL) if len(meant.get(a.question_key, ())) > 1 else a for a in answers]


def _whole(row: dict[str, object]) -> bool:
    maximum = row["max_score"]
    usable = isinstance(maximum, float) and np.isfinite(maximum) and maximum > 0
    return usable and row["question"] is not None and row["answer"] is not None


def _answers(items: pa.Table, whole: np.ndarray, keys: Iterator[str], names: list[str]) -> Iterator[Answer]:
    prefixes = stems(names)
    for row, fits in zip(items.to_pylist(), whole, strict=True):
        number = row["file"]
        yield Answer(
            item_id=f"{prefixes[number]}:{row['record_index']}:{row['item_index']}",
            file=names[number],
            record_index=row["record_index"],
            item_index=row["item_index"],
            question_key=next(keys) if fits else "",
            question=row["question"] if fits else "",
            answer=row["answer"] if fits else "",
            rubric=row["rubric"] if fits else None,
            max_score=row["max_score"] if fits else 0.0,
            fault="" if fits else "question, answer or a maximum above 0 is missing or of another kind",
        )


def _spell(file: FileState) -> str:
    assert file.fault is not None
    place = "" if file.fault.line is None else f" line {file.fault.line}, column {file.fault.column}"
    return f"{file.name}:{place} {file.fault.detail} ({file.fault.code}); mend the file and run again"
