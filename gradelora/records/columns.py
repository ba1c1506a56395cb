"""Parsed records to Arrow columns, a batch at a time, with a flag for what does not fit.

Whole columns are converted at once; only a column that holds something unexpected is looked
at value by value.  A value that does not fit becomes null (NaN for a number), its row is
flagged, and a reason is kept that names field and kind, never the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradelora.records.schema import ALIGNMENT, ITEM_FIELDS, MISSING, RECORD_FIELDS

Flags = dict[str, NDArray[np.bool_]]
PARSE_CODES = ("type", "missing_field", "lone_surrogate", "unknown_field")
_KINDS: dict[str, set[type]] = {"number": {int, float}, "text": {str}}
_SPELL = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
# Few different texts stand in very many rows.
_REPEATED = ("question", "rubric", "question_id", "student_id", "group")
_REPEATED_TYPE = pa.dictionary(pa.int32(), pa.string())


@dataclass
class Rows:
    """One kind of row (records or items): columns, flags and reasons by (row, code)."""

    table: pa.Table
    flags: Flags
    reasons: dict[tuple[int, str], str]


@dataclass
class _Builder:
    """Columns of one batch under construction."""

    size: int
    columns: dict[str, pa.Array] = field(default_factory=dict)
    flags: Flags = field(default_factory=dict)
    reasons: dict[tuple[int, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flags = {code: np.zeros(self.size, dtype=bool) for code in PARSE_CODES}

    def flag(self, row: int, code: str, reason: str) -> None:
        """Mark one row; the first reason stays."""
        self.flags[code][row] = True
        self.reasons.setdefault((row, code), reason)

    def objects(self, values: list[Any], what: str) -> list[dict[str, Any]]:
        """The values with an empty object for everything that is none."""
        if set(map(type, values)) <= {dict}:
            return values
        for row, value in enumerate(values):
            if type(value) is not dict:
                self.flag(row, "type", f"{what} must be an object, found {_spell(value)}")
        return [v if type(v) is dict else {} for v in values]

    def fields(self, rows: list[dict[str, Any]], fields: dict[str, tuple[str, bool]], known: set[str]) -> None:
        """Add one column a field, and flag rows with keys beyond `known`."""
        whole = ~self.flags["type"]
        present = set().union(*rows)
        for name, (kind, required) in fields.items():
            if name not in present and not required:
                self.columns[name] = _absent(name, kind, self.size)
                continue
            try:
                values = list(map(itemgetter(name), rows))
            except KeyError:
                values = [row.get(name, MISSING if required else None) for row in rows]
            self.columns[name] = self._column(name, values, kind, required, whole)
        if present - known:
            self.flags["unknown_field"] = np.fromiter((not row.keys() <= known for row in rows), bool, self.size)

    def _column(self, name: str, values: list[Any], kind: str, required: bool, whole: NDArray[np.bool_]) -> pa.Array:
        fitting = _KINDS[kind] if required else _KINDS[kind] | {type(None)}
        if not set(map(type, values)) <= fitting:
            values = [self._fitting(name, v, row, kind, fitting, whole) for row, v in enumerate(values)]
        if kind == "number":
            # Through numpy: Arrow refuses whole numbers that a float cannot hold exactly.
            return pa.array(np.array(values, dtype=np.float64), from_pandas=True)
        arrow = _REPEATED_TYPE if name in _REPEATED else pa.string()
        try:
            return pa.array(values, arrow)
        except UnicodeEncodeError:
            return pa.array([self._encodable(name, v, row) for row, v in enumerate(values)], arrow)

    def _fitting(self, name: str, value: Any, row: int, kind: str, fitting: set[type], whole: NDArray[np.bool_]) -> Any:
        if type(value) in fitting:
            return value
        if not whole[row]:
            return None
        if value is MISSING:
            self.flag(row, "missing_field", f"{name} is missing")
        else:
            self.flag(row, "type", f"{name} must be {'a number' if kind == 'number' else kind}, found {_spell(value)}")
        return None

    def _encodable(self, name: str, value: str | None, row: int) -> str | None:
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            self.flag(row, "lone_surrogate", f"{name} holds half of a surrogate pair")
            return None
        return value

    def rows(self) -> Rows:
        """The finished rows."""
        return Rows(pa.table(self.columns), self.flags, self.reasons)


def _absent(name: str, kind: str, size: int) -> pa.Array:
    """A column that no row of the batch has."""
    nulls = pa.nulls(size, pa.float64() if kind == "number" else pa.string())
    return nulls.dictionary_encode() if name in _REPEATED else nulls


def to_columns(records: list[Any], first_index: int) -> tuple[Rows, Rows]:
    """Records and items of one batch whose first record has the index `first_index`.

    Records: the fields of RECORD_FIELDS, record_index, n_items.  Items: those of ITEM_FIELDS,
    record_index, item_index, and record_row, the row of their record in this batch.
    """
    outer = _Builder(len(records))
    objects = outer.objects(records, "a record")
    outer.fields(objects, RECORD_FIELDS, {*RECORD_FIELDS, ALIGNMENT})
    lists = [_alignment(outer, row, value) for row, value in enumerate(objects)]
    lengths = np.fromiter(map(len, lists), np.int32, len(lists))
    indices = np.arange(first_index, first_index + len(records), dtype=np.int32)
    outer.columns |= {"record_index": pa.array(indices), "n_items": pa.array(lengths)}

    inner = _Builder(int(lengths.sum()))
    items = inner.objects([item for items in lists for item in items], "an item")
    inner.fields(items, ITEM_FIELDS, set(ITEM_FIELDS))
    starts = np.cumsum(lengths) - lengths
    inner.columns |= {
        "record_index": pa.array(np.repeat(indices, lengths)),
        "item_index": pa.array(np.arange(inner.size, dtype=np.int32) - np.repeat(starts, lengths).astype(np.int32)),
        "record_row": pa.array(np.repeat(np.arange(len(records), dtype=np.int64), lengths)),
    }
    return outer.rows(), inner.rows()


def _alignment(outer: _Builder, row: int, record: dict[str, Any]) -> list[Any]:
    """The list of items of one record; empty where there is none."""
    value = record.get(ALIGNMENT, MISSING)
    if type(value) is list:
        return value
    if not outer.flags["type"][row] or record:
        if value is MISSING:
            outer.flag(row, "missing_field", f"{ALIGNMENT} is missing")
        else:
            outer.flag(row, "type", f"{ALIGNMENT} must be a list, found {_spell(value)}")
    return []


def joined(parts: Sequence[Rows], record_offsets: Sequence[int] | None = None) -> Rows:
    """The rows of many batches, one dictionary a column; `record_row` shifted by the offsets."""
    tables, reasons, start = [], {}, 0
    for number, part in enumerate(parts):
        table = part.table
        if record_offsets is not None:
            at = table.schema.get_field_index("record_row")
            shifted = table["record_row"].to_numpy() + record_offsets[number]
            table = table.set_column(at, "record_row", pa.array(shifted))
        tables.append(table)
        reasons.update({(row + start, code): reason for (row, code), reason in part.reasons.items()})
        start += table.num_rows
    flags = {code: np.concatenate([part.flags[code] for part in parts]) for code in parts[0].flags}
    return Rows(pa.concat_tables(tables).unify_dictionaries(), flags, reasons)


def _spell(value: Any) -> str:
    return "null" if value is None else _SPELL.get(type(value), type(value).__name__)
