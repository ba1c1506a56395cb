"""Where in a JSON text the first thing is that the scanner's hooks refuse.

The hooks are not told positions.  This pass runs only on a text that was refused already;
it is iterative, so that nesting that breaks a recursive parser does not break it.
"""

import json
import math
import re

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|NaN|-?Infinity|[{}\[\]:,]', re.DOTALL)


def locate(text: str, start: int) -> tuple[str, str, int]:
    """Code, what is wrong, and position of the first duplicate key or non-finite number.

    Where neither is found the text nests too deep: the position is its deepest opening.
    """
    keys: list[set[str] | None] = []
    deepest, deepest_at, expects_key = 0, start, False
    for match in _TOKEN.finditer(text, start):
        token = match.group()
        if token in "{[":
            keys.append(set() if token == "{" else None)
            expects_key = token == "{"
            if len(keys) > deepest:
                deepest, deepest_at = len(keys), match.start()
        elif token in "}]":
            if keys:
                keys.pop()
            expects_key = False
        elif token == ",":
            expects_key = bool(keys) and keys[-1] is not None
        elif token == ":":
            expects_key = False
        elif token[0] == '"':
            if expects_key and keys and (seen := keys[-1]) is not None:
                name = json.loads(token, strict=False)
                if name in seen:
                    return "duplicate_key", "a key stands twice in one object", match.start()
                seen.add(name)
        elif not math.isfinite(float(token)):
            return "non_finite", "a number must be finite and fit a 64-bit float", match.start()
    return "bad_json", f"{deepest} levels of nesting", deepest_at
