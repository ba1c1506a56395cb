"""What a run came to: a table of its stages and the headline figures, for people and as JSON."""

from pathlib import Path

from gradelora.artifacts import EvalReport, Frozen, Interval
from gradelora.gate import Verdict
from gradelora.report import StageRow


class Outcome(Frozen):
    """Everything that a run leaves behind."""

    name: str
    stages: tuple[StageRow, ...]
    evaluation: EvalReport
    verdict: Verdict
    adapter: Path
    merged: Path | None
    page: Path


def spell(interval: Interval) -> str:
    """`0.734 [0.655, 0.801]`, or n/a with the reason."""
    if interval.value is None:
        return f"n/a ({interval.reason})"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} (no interval: {interval.reason})"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def agreement(outcome: Outcome) -> list[tuple[str, str]]:
    """QWK of the base, the adapter and their difference, spelled."""
    report = outcome.evaluation
    return [("base", spell(report.base_qwk)), ("adapter", spell(report.adapter_qwk)), ("gain", spell(report.qwk_gain))]


def agreement_title(outcome: Outcome) -> str:
    """What the figures are of."""
    level = 100 * outcome.verdict.comparison.confidence_level
    split = outcome.evaluation.split.replace("_", " ")
    return f"QWK with {level:g} % intervals on {outcome.evaluation.items} {split}"


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
    figures = Table("", "QWK [low, high]", title=agreement_title(outcome))
    for name, figure in agreement(outcome):
        figures.add_row(name, figure)
    console.print(figures)
    console.print(outcome.verdict.reason, soft_wrap=True)
    for name, path in (("adapter", outcome.adapter), ("merged", outcome.merged), ("report", outcome.page)):
        if path is not None:
            console.print(f"{name}: {path}", soft_wrap=True, highlight=False)
