"""Every load proves that no key was missing and none was left over."""

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
