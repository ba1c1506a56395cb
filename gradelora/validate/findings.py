"""What validation found, and how it is told."""

import json
from pathlib import Path

from pydantic import Field

from gradelora.artifacts import Frozen, SplitCounts
from gradelora.validate.codes import BY_NAME, Level, worst


class FileFindings(Frozen):
    """One file: the worst level of its codes, rows a code, and where it broke if it did."""

    path: str
    level: Level
    codes: dict[str, int]
    records: int = 0
    items: int = 0
    fault: str | None = Field(None, description="line, column and what is wrong there")


class DataSetFindings(Frozen):
    """What concerns all files together; counts of items unless the name says otherwise."""

    level: Level
    codes: dict[str, int]
    details: dict[str, str] = Field(description="one sentence for a code, naming files and row numbers")
    records: int
    items: int
    quarantined: int
    withheld: int = Field(description="good items that take no part: their answer stands on a more protected side too")
    questions: int
    splits: SplitCounts
    pii: dict[str, int] = Field(description="items a kind; what was found is not kept")
    students_on_both_sides: int = Field(
        description="students with items in two of train, validation and unseen_answers, which named files can bring"
    )


class Source(Frozen):
    """One data file by its bytes."""

    name: str
    sha256: str
    size: int


class Findings(Frozen):
    """findings.json."""

    files: tuple[FileFindings, ...]
    data_set: DataSetFindings
    sources: tuple[Source, ...]

    @property
    def level(self) -> Level:
        """The worst of all."""
        return worst([*(f.level for f in self.files), self.data_set.level])

    @property
    def blocked(self) -> bool:
        """Whether training could not go on."""
        return self.level == "error"

    @property
    def warnings(self) -> int:
        """Number of warnings, of files, records, items and questions."""
        found = [*(f.codes for f in self.files), self.data_set.codes]
        return sum(n for codes in found for code, n in codes.items() if BY_NAME[code].level == "warning")

    def sentence(self) -> str:
        """The first thing that blocks the run, where it is and what to do.  Only when blocked."""
        for file in self.files:
            for code in file.codes:
                if BY_NAME[code].level == "error":
                    return f"{file.path}: {code}: {file.fault}; {BY_NAME[code].remedy}{self._others()}"
        code = next(c for c in self.data_set.codes if BY_NAME[c].level == "error")
        return f"{code}: {self.data_set.details[code]}; {BY_NAME[code].remedy}{self._others()}"

    def _others(self) -> str:
        errors = sum(BY_NAME[c].level == "error" for f in self.files for c in f.codes)
        errors += sum(BY_NAME[c].level == "error" for c in self.data_set.codes)
        return f" (and {errors - 1} more in findings.json)" if errors > 1 else ""

    def lines(self) -> list[str]:
        """For a log: one line a file with something in it, and the sums."""
        told = [
            f"{f.path}: {f.level}: " + ", ".join(f"{code} {n}" for code, n in f.codes.items())
            for f in self.files
            if f.codes
        ]
        told += [f"all files: {code} {n}: {self.data_set.details[code]}" for code, n in self.data_set.codes.items()]
        sides = ", ".join(f"{name} {n}" for name, n in self.data_set.splits.model_dump().items())
        whole = self.data_set
        aside = f"{whole.quarantined} quarantined, {whole.withheld} withheld"
        return [*told, f"{whole.items} items of {whole.questions} questions ({sides}), {aside}"]


def write_json(path: Path, value: Frozen) -> None:
    """Write a model as readable JSON, the same bytes for the same value."""
    path.write_text(json.dumps(value.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
