"""What single files show: whether they can be read, and the codes of their rows."""

from typing import Any

import numpy as np

from gradelora.records.columns import Flags
from gradelora.records.read import FileState, Tables
from gradelora.records.stream import Fault
from gradelora.validate.codes import BY_NAME, CODES, Level, worst
from gradelora.validate.findings import FileFindings
from gradelora.validate.quarantine import Checked

FAULTS = tuple(c.name for c in CODES if c.scopes == ("file",) and c.level == "error")


def file_flags(tables: Tables) -> Flags:
    """Flags of files, bool[files] each."""
    faults = [f.fault.code if f.fault else "" for f in tables.files]
    flags = {
        c.name: np.array([f == c.name for f in faults]) for c in CODES if "file" in c.scopes and c.level == "error"
    }
    flags["bom"] = np.array([f.bom for f in tables.files])
    flags["no_records"] = np.array([f.records == 0 and f.fault is None for f in tables.files])
    return flags


def file_findings(
    tables: Tables, levels: dict[str, Level], file_codes: tuple[Flags, dict[str, int]], rows: list[Checked]
) -> tuple[FileFindings, ...]:
    """Each file with the codes that the judge found failing, counted in its own rows."""
    flags, failing = file_codes
    counts = {code: flags[code].astype(int) for code in failing}
    for checked in rows:
        file = checked.rows.table["file"].to_numpy()
        for code in checked.failing:
            found = np.bincount(file[checked.flags[code]], minlength=len(tables.files))
            counts[code] = counts.get(code, 0) + found
    return tuple(_one_file(f, i, counts, levels) for i, f in enumerate(tables.files))


def _one_file(file: FileState, number: int, counts: dict[str, Any], levels: dict[str, Level]) -> FileFindings:
    codes = {code: int(counts[code][number]) for code in BY_NAME if code in counts and counts[code][number]}
    return FileFindings(
        path=file.name,
        level=worst([levels[code] for code in codes]),
        codes=codes,
        records=file.records,
        items=file.items,
        fault=_spell(file.fault) if file.fault else None,
    )


def _spell(fault: Fault) -> str:
    if fault.line is None:
        return fault.detail
    return f"line {fault.line}, column {fault.column}: {fault.detail}"
