"""JSON that is surely the same to every parser, read two to three times as fast as strictly.

orjson refuses all that the strict scanner refuses (NaN, Infinity, numbers beyond a float, half
surrogates, hopeless nesting) but one thing: of two equal keys it keeps the last.  So keys are
counted in the text and in what was read from it.  Where the counts differ, or orjson refuses,
nothing is said: the strict scanner looks again and says what is wrong, if anything is.
"""

import re
from typing import Any

import numpy as np
import orjson

from gradelora.records.schema import ALIGNMENT

_QUOTE, _COLON = b'":'
_KEY_END = re.compile(rb'"[ \t\n\r]*:')


def read(text: bytes) -> Any | None:
    """The value of a JSON text, a list of records or one record; None where the strict scanner must look.

    Whole numbers beyond 64 bits come as floats.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    records = value if type(value) is list else [value]
    # Keys counted in the value are at most those in the text, and these are at most the places
    # that look like the end of a key: where the outer two are equal no key has gone.
    return value if _keys_read(records) == _keys_written(text) else None


def _keys_read(records: list[Any]) -> int:
    """Keys of records and their items; deeper ones, which the format does not know, are left out."""
    count = 0
    for record in records:
        if type(record) is dict:
            count += len(record)
            items = record.get(ALIGNMENT)
            if type(items) is list:
                count += sum([len(item) for item in items if type(item) is dict])
    return count


def _keys_written(text: bytes) -> int:
    """Places that look like the end of a key: all that are, and those inside of strings."""
    letters = np.frombuffer(text, np.uint8)
    before = letters[np.flatnonzero(letters == _COLON) - 1]
    if (before <= ord(" ")).any():
        return len(_KEY_END.findall(text))
    return int(np.count_nonzero(before == _QUOTE))
