"""All data files into two Arrow tables, records and items, and what is wrong with the files."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradelora.artifacts import DataFiles, FileEntry, sha256_file
from gradelora.errors import BadData
from gradelora.records import parse
from gradelora.records.columns import Rows, joined, to_columns
from gradelora.records.stream import Fault


@dataclass(frozen=True)
class FileState:
    """One file: what broke it, whether it begins with a byte order mark, its rows."""

    name: str
    fault: Fault | None
    bom: bool
    records: int
    items: int


@dataclass(frozen=True)
class Tables:
    """Rows of all readable files, in the order of the files; `file` is an index into them."""

    files: tuple[FileState, ...]
    records: Rows
    items: Rows


def read_files(data: DataFiles, max_bytes: int) -> Tables:
    """Read every file; a file with a fault gives no rows.

    Raises BadData where a file is no longer the one that was collected.
    """
    files: list[FileState] = []
    # One empty part, so that no file at all has columns too.
    parts: list[tuple[Rows, Rows]] = [_with_file(to_columns([], 0), 0)]
    for number, entry in enumerate(data.files):
        path, fault = data.path / entry.name, None
        _same(data, entry)
        own: list[tuple[Rows, Rows]] = []
        first = 0
        try:
            with _no_cycle_collection():
                for batch in parse.batches(path, max_bytes):
                    own.append(_with_file(to_columns(batch, first), number))
                    first += len(batch)
        except Fault as found:
            fault, own = found, []
        _same(data, entry)
        sizes = [sum(part[side].table.num_rows for part in own) for side in (0, 1)]
        files.append(FileState(entry.name, fault, parse.has_bom(path), *sizes))
        parts += own
    records = [part[0] for part in parts]
    starts = np.cumsum([0] + [part.table.num_rows for part in records]).tolist()
    return Tables(tuple(files), joined(records), joined([part[1] for part in parts], starts))


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Parsed JSON has no reference cycles; looking for some among its objects takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _with_file(both: tuple[Rows, Rows], number: int) -> tuple[Rows, Rows]:
    for rows in both:
        column = pa.array(np.full(rows.table.num_rows, number, dtype=np.int32))
        rows.table = rows.table.append_column("file", column)
    return both


def _same(data: DataFiles, entry: FileEntry) -> None:
    """The file is still the one whose bytes the key was made from."""
    path = data.path / entry.name
    try:
        stat = path.stat()
        same = stat.st_size == entry.size and (stat.st_mtime_ns == entry.mtime_ns or sha256_file(path) == entry.sha256)
    except OSError as error:
        raise BadData(f"{path}: cannot be read any more ({error.strerror}); put it back and run again") from error
    if not same:
        raise BadData(f"{path}: changed since the run began; run again when nothing writes to it")
