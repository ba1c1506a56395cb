"""report: one self-contained HTML page of a run, and the adapter's model card.

Not a cached stage: a picture is not an artifact.  The same input gives the same bytes.
"""

import tempfile
from pathlib import Path

from gradelora.report.compared import compare
from gradelora.report.given import ReportInput
from gradelora.report.stages import StageRow, stage_row
from gradelora.report.use import Handover

PAGE = "report.html"
CARD = "README.md"


def write_report(given: ReportInput, folder: Path) -> Path:
    """report.html in `folder`: opens from disk, without a network.  Raises OSError, Damaged."""
    from gradelora.report.page import render

    return _write(folder / PAGE, render(given))


def write_plan(given: ReportInput, folder: Path) -> None:
    """plan.json in `folder`, and compared.json where the plan was held against the run."""
    _write(folder / "plan.json", given.plan.model_dump_json(indent=1))
    if given.comparison is not None:
        _write(folder / "compared.json", given.comparison.model_dump_json(indent=1))


def write_card(given: ReportInput, folder: Path) -> Path:
    """README.md in `folder`, as the Hub reads it.  Of a sealed artifact only `aside/`: the rest would be damaged."""
    return _write(folder / CARD, model_card(given))


def model_card(given: ReportInput, handover: Handover | None = None) -> str:
    """The card's text: YAML front matter, then the same numbers as the page's; of the adapter by default."""
    from gradelora.report.card import render

    return render(given, handover)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two runs of one configuration end at the same moment.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False, suffix=".part") as part:
        part.write(text)
    Path(part.name).replace(path)
    return path


__all__ = [
    "Handover",
    "ReportInput",
    "StageRow",
    "compare",
    "model_card",
    "stage_row",
    "write_card",
    "write_plan",
    "write_report",
]
