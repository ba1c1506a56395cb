"""A RunConfig from a YAML file and `section.field=value` overrides; its faults by field and remedy."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gradelora.config import RunConfig
from gradelora.errors import BadConfig


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans: `off`, `on`, `yes` and `no` are words (`train.sharing: off`)."""


_BOOL = "tag:yaml.org,2002:bool"
_Yaml.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or letter in "tTfF"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Yaml)


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read one YAML file and apply `section.field=value` overrides.

    Raises BadConfig naming the field and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: cannot be read ({error}); name one of deployments/*.yaml with --config") from error
    try:
        values = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadConfig(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise BadConfig(f"{path}: must be a mapping of sections, found {type(values).__name__}")
    return build_config(values, overrides, where=str(path))


def build_config(values: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "config") -> RunConfig:
    """A RunConfig from plain values and `section.field=value` overrides.  Raises BadConfig."""
    merged = _copied(values)
    for override in overrides:
        _apply(merged, override)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise BadConfig(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted path in place; the value is read as YAML."""
    name, equals, text = override.partition("=")
    *sections, field = name.strip().split(".")
    if not equals or not field:
        raise BadConfig(f"--set {override}: write it as section.field=value, e.g. --set train.learning_rate=1e-4")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise BadConfig(f"--set {override}: {section} is a value, not a section")
    try:
        values[field] = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadConfig(f"--set {override}: the value is no YAML") from error


def _explain(error: Any) -> str:
    """One pydantic error as field, fault and remedy."""
    where = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        names = _names_at(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(names))}"
        return f"{where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _names_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
