"""Bytes to Python values, strictly: what another parser would read differently is refused.

The standard library's C scanner says what is right, one record at a time, so that memory is
bounded by a chunk and not by the file.  What it lets through is caught by hooks: duplicate
keys, NaN and Infinity, numbers beyond a float (1e999, 400 digits), hopeless nesting.
What is surely right is read many records at a time, by a faster parser (gradelora.records.fast).
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gradelora.records import fast
from gradelora.records.locate import locate
from gradelora.records.stream import SPACE, Fault, Plain, Window, open_plain

# Objects of so many records are held at once; many more cost the system a second a million items.
BATCH_RECORDS = 4_000
_AFTER = frozenset(" \t\n\r,]")
# From the end of one record to what the next begins with.
_GAP = re.compile(r'([ \t\n\r]*,[ \t\n\r]*)\{(?:[ \t\n\r]*"\w+")?')
# One more digit may pass the largest float, 1.8e308.
_SAFE_DIGITS = 308


class _Refused(ValueError):
    """Raised inside the scanner by a hook; where it happened is found afterwards."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused
    return made


def _integer(text: str) -> int:
    if len(text) > _SAFE_DIGITS:
        raise _Refused
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused
    return value


def _constant(text: str) -> float:
    raise _Refused(text)


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
# (text, position) -> (value, end): raw_decode without its wrapping.
_scan: Callable[[str, int], tuple[Any, int]] = vars(_decoder)["scan_once"]


def batches(path: Path, max_bytes: int) -> Iterator[list[Any]]:
    """The records of one file, whatever they are, in lists of at most BATCH_RECORDS.

    The form follows the name: `.jsonl` is one record a line, else one list; `.gz` around both.
    Raises Fault, possibly after some batches.
    """
    if path.stat().st_size > max_bytes:
        raise Fault("too_large", f"{path.stat().st_size} bytes, {max_bytes} allowed")
    with path.open("rb") as raw:
        plain = open_plain(raw, path.name.endswith(".gz"), max_bytes)
        plain.skip_bom()
        stem = path.name.removesuffix(".gz")
        records = _lines(plain) if stem.endswith(".jsonl") else _elements(Window(plain))
        while batch := list(islice(records, BATCH_RECORDS)):
            yield batch


def has_bom(path: Path) -> bool:
    """Whether the text begins with a byte order mark, which is skipped."""
    with path.open("rb") as raw:
        try:
            return open_plain(raw, path.name.endswith(".gz"), 3).skip_bom()
        except Fault:
            return False


def _elements(window: Window) -> Iterator[Any]:
    """The elements of the one list that the text is."""
    at = window.skip_space(0)
    if at == len(window.text):
        raise Fault("empty", "no data in it")
    if window.text[at] != "[":
        _, at = _value(window, at)
        _expect_end(window, window.skip_space(at))
        raise Fault("root_not_list", "the whole must be a list of records")
    at = window.skip_space(at + 1)
    if window.text[at : at + 1] == "]":
        return _expect_end(window, window.skip_space(at + 1))
    tried = ""
    while True:
        value, at = _value(window, at)
        yield value
        # Once a chunk: what cannot be read at once is read one by one.
        if window.text is not tried:
            tried = window.text
            values, at = _many(window.text, at)
            yield from values
        if window.text[at : at + 1] != ",":
            at = window.skip_space(at)
        mark = window.text[at : at + 1]
        if mark == "]":
            return _expect_end(window, window.skip_space(at + 1))
        if mark != ",":
            raise Fault("bad_json", "a comma or the end of the list is missing", *window.place(at))
        at = window.skip_space(at + 1)


def _many(text: str, end: int) -> tuple[list[Any], int]:
    """Elements that follow the one that ends at `end`, as many as are surely whole, and their end.

    The cut is a guess, a place that looks like the last gap between two elements; that the text
    up to it is valid as a list proves it, for inside an element or a string it could not be.
    """
    gap = _GAP.match(text, end)
    if gap is None:
        return [], end
    cut = text.rfind(text[end - 1] + gap.group(), end)
    if cut < 0:
        return [], end
    listed = f"[{text[gap.end(1) : cut + 1]}]"
    if (values := fast.read(listed.encode())) is not None:
        return values, cut + 1
    try:
        values, stop = _scan(listed, 0)
    except (StopIteration, ValueError, RecursionError):
        return [], end
    return (values, cut + 1) if stop == len(listed) else ([], end)


def _expect_end(window: Window, at: int) -> None:
    if at != len(window.text):
        raise Fault("bad_json", "something follows the end of the data", *window.place(at))


def _value(window: Window, at: int) -> tuple[Any, int]:
    """The value at a position and the position behind it; reads on while it is incomplete."""
    while True:
        try:
            value, end = _scan(window.text, at)
            # "12" or "12e" at the end of the text may be the beginning of "123" or "12e3".
            if isinstance(value, dict | list | str) or window.ended or window.text[end : end + 1] in _AFTER:
                return value, end
        except (StopIteration, json.JSONDecodeError) as error:
            if window.ended:
                raise _bad(error, window.place) from error
        except (_Refused, RecursionError) as error:
            raise _refused(window.text, at, window.place) from error
        window.grow(at)
        at = 0


def _lines(plain: Plain) -> Iterator[Any]:
    """The values of JSON lines; blank lines separate and count as lines."""
    anything = False
    for number, raw in enumerate(plain.lines(), 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            column = len(raw[: error.start].decode()) + 1
            raise Fault("not_utf8", "a byte that is no UTF-8", number, column) from error
        start = SPACE.match(text).end()  # type: ignore[union-attr]
        if start < len(text):
            anything = True
            value = fast.read(raw)
            yield _line(text, start, number) if value is None else value
    if not anything:
        raise Fault("empty", "no data in it")


def _line(text: str, start: int, number: int) -> Any:
    def place(position: int) -> tuple[int, int]:
        return number, position + 1

    try:
        value, end = _scan(text, start)
    except (StopIteration, json.JSONDecodeError) as error:
        raise _bad(error, place) from error
    except (_Refused, RecursionError) as error:
        raise _refused(text, start, place) from error
    if SPACE.match(text, end).end() != len(text):  # type: ignore[union-attr]
        raise Fault("bad_json", "a line must be one record and nothing more", *place(end))
    return value


def _bad(error: StopIteration | json.JSONDecodeError, place: Callable[[int], tuple[int, int]]) -> Fault:
    """bad_json at the scanner's position; its messages name no text."""
    if isinstance(error, json.JSONDecodeError):
        return Fault("bad_json", error.msg[:1].lower() + error.msg[1:], *place(error.pos))
    return Fault("bad_json", "a value is missing or misspelt", *place(error.value))


def _refused(text: str, start: int, place: Callable[[int], tuple[int, int]]) -> Fault:
    """The fault behind a hook's refusal, found again with its position."""
    code, detail, position = locate(text, start)
    return Fault(code, detail, *place(position))
