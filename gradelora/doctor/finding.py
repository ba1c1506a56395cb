"""What one check of the doctor says."""

from gradelora.artifacts import Frozen


class Finding(Frozen):
    """One check: what was looked at, what was found, and the remedy where it is not ok."""

    check: str
    ok: bool
    found: str
    remedy: str = ""
