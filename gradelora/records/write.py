"""Kept rows to Arrow files: the same bytes for the same rows."""

from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradelora.artifacts import SPLITS
from gradelora.records.schema import ITEMS, RECORDS
from gradelora.records.source import SUFFIXES

# Rows written at once: bounds the memory that repeated texts take when spelt out.
BATCH_ROWS = 2**16


def stems(names: list[str]) -> list[str]:
    """What the ids of each file's rows begin with: its name without suffix, in full if two share it."""
    short = [_stem(name) for name in names]
    return [name if short.count(stem) > 1 else stem for name, stem in zip(names, short, strict=True)]


def _stem(name: str) -> str:
    suffix = max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")
    return PurePosixPath(name.removesuffix(suffix)).as_posix()


def write_items(
    path: Path,
    items: pa.Table,
    used: NDArray[np.bool_],
    names: list[str],
    keys: tuple[str, ...],
    question: NDArray[np.int64],
    sides: NDArray[np.int8],
) -> None:
    """items.arrow: the rows that are `used`, bool[n]; `names` are the files'.

    For used rows alone: `question`, an index into `keys`, and `sides`, one into SPLITS.
    """
    added = {
        "question_key": pa.DictionaryArray.from_arrays(pa.array(question), pa.array(keys, pa.string())),
        "split": pa.DictionaryArray.from_arrays(pa.array(sides), pa.array(SPLITS)),
    }
    _write(path, items, used, added, names, ITEMS)


def write_records(path: Path, records: pa.Table, used: NDArray[np.bool_], names: list[str]) -> None:
    """records.arrow: the rows that are `used`, bool[n]."""
    _write(path, records, used, {}, names, RECORDS)


def _write(
    path: Path,
    table: pa.Table,
    used: NDArray[np.bool_],
    added: dict[str, pa.Array],
    names: list[str],
    schema: pa.Schema,
) -> None:
    """Piece by piece: the texts are never copied as a whole."""
    stem_array, name_array = pa.array(stems(names), pa.string()), pa.array(names, pa.string())
    written = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, table.num_rows, BATCH_ROWS):
            wanted = pa.array(used[start : start + BATCH_ROWS])
            part = table.slice(start, BATCH_ROWS).filter(wanted).combine_chunks()
            columns = {name: part[name] for name in part.column_names}
            columns |= {name: column.slice(written, part.num_rows) for name, column in added.items()}
            columns["record_id"] = _joined(stem_array.take(part["file"]), part["record_index"])
            if "item_id" in schema.names:
                columns["item_id"] = _joined(columns["record_id"], part["item_index"])
            columns["file"] = name_array.take(part["file"])
            writer.write_table(pa.table([columns[f.name].cast(f.type) for f in schema], schema=schema))
            written += part.num_rows


def _joined(left: pa.ChunkedArray, number: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(left, number.cast(pa.string()), ":")
