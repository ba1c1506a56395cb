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
    path: Path, items: pa.Table, names: list[str], keys: NDArray[np.object_], sides: NDArray[np.int8]
) -> None:
    """items.arrow; `keys` and `sides` (indices into SPLITS) are each item's, `names` the files'."""
    extra = {
        "question_key": pa.array(keys, pa.string()),
        "split": pa.DictionaryArray.from_arrays(pa.array(sides), pa.array(SPLITS)),
    }
    for name, column in extra.items():
        items = items.append_column(name, column)
    _write(path, items, names, ITEMS)


def write_records(path: Path, records: pa.Table, names: list[str]) -> None:
    """records.arrow."""
    _write(path, records, names, RECORDS)


def _write(path: Path, table: pa.Table, names: list[str], schema: pa.Schema) -> None:
    stem_array, name_array = pa.array(stems(names), pa.string()), pa.array(names, pa.string())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, table.num_rows, BATCH_ROWS):
            part = table.slice(start, BATCH_ROWS).combine_chunks()
            columns = {name: part[name] for name in part.column_names}
            columns["record_id"] = _joined(stem_array.take(part["file"]), part["record_index"])
            if "item_id" in schema.names:
                columns["item_id"] = _joined(columns["record_id"], part["item_index"])
            columns["file"] = name_array.take(part["file"])
            writer.write_table(pa.table([columns[f.name].cast(f.type) for f in schema], schema=schema))


def _joined(left: pa.ChunkedArray, number: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(left, number.cast(pa.string()), ":")
