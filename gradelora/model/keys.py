"""Every load proves that no key was missing, none was left over, and each value has its parameter's shape."""

from collections.abc import Sequence

from gradelora.errors import KeyMismatch

_NAMED = 3


def check_keys(where: str, *, missing: set[str], unexpected: set[str]) -> None:
    """Raise KeyMismatch naming a few keys, unless both sets are empty."""
    faults = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if faults:
        raise KeyMismatch(f"{where}: keys {' and '.join(faults)}; what is missing would be random weights")


def check_shape(where: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise KeyMismatch where they differ; torch would stretch some values, and take others as they are."""
    if tuple(found) != tuple(wanted):
        raise KeyMismatch(f"{where} has shape {tuple(found)}, the model of config.json needs {tuple(wanted)}")
