"""What a run came to: a table of its stages and the headline figures, for people and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradelora.artifacts import EvalReport, Frozen, Interval
from gradelora.gate import Verdict
from gradelora.store import Obtained


class StageRow(Frozen):
    """One stage of a run: taken from the store or done now, wall seconds, and why it was done."""

    stage: str
    cached: bool
    seconds: float
    why: str
    digest: str


class Outcome(Frozen):
    """Everything that a run leaves behind."""

    name: str
    stages: tuple[StageRow, ...]
    evaluation: EvalReport
    verdict: Verdict
    adapter: Path
    merged: Path | None
    page: Path


def stage_rows(obtained: Sequence[Obtained[Any]]) -> tuple[StageRow, ...]:
    """A row for each; fetch's two parts are told apart by what they brought."""
    return tuple(
        StageRow(stage=o.label, cached=o.cached, seconds=round(o.seconds, 2), why=o.why, digest=o.artifact.digest)
        for o in obtained
    )


def spell(interval: Interval) -> str:
    """`0.734 [0.655, 0.801]`, or n/a with the reason."""
    if interval.value is None:
        return f"n/a ({interval.reason})"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} (no interval: {interval.reason})"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def print_outcome(outcome: Outcome) -> None:
    """The two tables with which a run ends."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    stages = Table("stage", "cached or run", "seconds", title=f"finetune/{outcome.name}")
    stages.columns[2].justify = "right"
    for row in outcome.stages:
        stages.add_row(row.stage, "cached" if row.cached else "run", f"{row.seconds:.1f}")
    console.print(stages)
    evaluation = outcome.evaluation
    split = evaluation.split.replace("_", " ")
    agreement = Table("", "QWK", title=f"Agreement with raters on {evaluation.items} {split}")
    level = outcome.verdict.comparison.confidence_level
    agreement.columns[1].header = f"QWK [{100 * level:g} % interval]"
    agreement.add_row("base", spell(evaluation.base_qwk))
    agreement.add_row("adapter", spell(evaluation.adapter_qwk))
    agreement.add_row("gain", spell(evaluation.qwk_gain))
    console.print(agreement)
    console.print(outcome.verdict.reason, soft_wrap=True)
    for name, path in (("adapter", outcome.adapter), ("merged", outcome.merged), ("report", outcome.page)):
        if path is not None:
            console.print(f"{name}: {path}", soft_wrap=True, highlight=False)
