"""`python -m gradelora.reference`: docs/configuration.md, written from RunConfig itself."""

import types
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gradelora.artifacts import Frozen
from gradelora.config import RunConfig

HEADER = """# Configuration

One YAML file is one run: `deployments/h200.yaml`, `laptop.yaml` and `demo.yaml` are examples.
Change a setting for one run with `--set section.field=value`.  An unknown key, a wrong unit or
an impossible combination is refused with the field's name and the remedy.

A stage runs again when its own section or one of its inputs changes; `runtime` changes nothing.
This page is written by `python -m gradelora.reference`.
"""


def reference() -> str:
    """The page: a table for every section."""
    return HEADER + "".join(_section("", RunConfig))


def _section(prefix: str, model: type[Frozen]) -> list[str]:
    """One model's table, then those of the models inside it."""
    inner = [(n, f.annotation) for n, f in model.model_fields.items() if _is_model(f.annotation)]
    rows = [_row(n, f) for n, f in model.model_fields.items() if not _is_model(f.annotation)]
    title = f"\n## {prefix.rstrip('.') or 'top level'}\n\n{(model.__doc__ or '').strip()}\n\n"
    table = ["| field | type | default | meaning |\n|---|---|---|---|\n", *rows] if rows else []
    return [title, *table, *(line for n, m in inner for line in _section(f"{prefix}{n}.", m))]  # type: ignore[arg-type]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Frozen)


def _row(name: str, field: FieldInfo) -> str:
    given = field.default is PydanticUndefined
    default = "required" if given else f"`{_plain(field.default)}`"
    bounds = ", ".join(_bound(m) for m in field.metadata if _bound(m))
    meaning = "; ".join(part for part in (field.description, bounds) if part)
    return f"| `{name}` | {_type(field.annotation)} | {default} | {meaning} |\n"


def _plain(value: Any) -> Any:
    return "null" if value is None else ", ".join(value) if isinstance(value, tuple) else value


def _bound(rule: Any) -> str:
    """An annotated_types bound as text."""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " ".join(f"{text} {getattr(rule, sign)}" for sign, text in signs.items() if hasattr(rule, sign))


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{v}`" for v in get_args(annotation))
    if get_origin(annotation) is types.UnionType:
        return " or ".join("null" if a is type(None) else _type(a) for a in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    return str(annotation.__name__)


if __name__ == "__main__":
    print(reference(), end="")
