"""Draw the page and tell the UI; never cached, so that a cached run shows its figures, too."""

import time
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from gradelora.artifacts import ASIDE, Adapter, EvalReport, MergedModel, ModelSnapshot, ValidatedRecords
from gradelora.code_version import code_version
from gradelora.config import RunConfig
from gradelora.gate import Verdict
from gradelora.outcome import Outcome, agreement, agreement_title
from gradelora.preflight import Plan
from gradelora.report import ReportInput, compare, stage_row, write_card, write_plan, write_report
from gradelora.report.compared import Comparison
from gradelora.report.figures import duration
from gradelora.report.foretold import tables_of
from gradelora.store import Obtained, Store
from tasks.shown import a_picture, show_links
from tasks.stage import stage_task


@stage_task()
def report(
    run: RunConfig,
    plan: Plan,
    verdict: Verdict,
    *,
    fetched: tuple[Obtained[ModelSnapshot], Obtained[ModelSnapshot]],
    prepared: tuple[Obtained[ValidatedRecords], Obtained[Any]],
    adapter: Obtained[Adapter],
    evaluation: Obtained[EvalReport],
    merged: Obtained[MergedModel] | None,
) -> Outcome:
    """One HTML page in the store, a model card there and beside the adapter, two tables in the UI."""
    done: list[Obtained[Any]] = [*fetched, *prepared, adapter, evaluation, *([merged] if merged else [])]
    rows = tuple(stage_row(o) for o in done)
    comparison = compare(plan, done, rows)
    given = ReportInput(
        run=run,
        made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        code_version=code_version(),
        stages=rows,
        plan=plan,
        snapshot=fetched[1].artifact,
        records=prepared[0].artifact,
        adapter=adapter.artifact,
        evaluation=evaluation.artifact,
        verdict=verdict,
        merged=merged.artifact if merged else None,
        comparison=comparison,
    )
    folder = Store(run.store.root).root / "reports" / f"{run.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    write_card(given, folder)
    write_card(given, adapter.artifact.path / ASIDE)
    write_plan(given, folder)
    outcome = Outcome(
        name=run.name,
        stages=given.stages,
        evaluation=evaluation.artifact,
        verdict=verdict,
        adapter=adapter.artifact.path,
        merged=merged.artifact.path if merged else None,
        page=write_report(given, folder),
    )
    _publish(outcome)
    show_links(outcome, given.snapshot, run.runtime)
    _publish_comparison(outcome.name, comparison)
    return outcome


@a_picture
def _publish_comparison(name: str, comparison: Comparison) -> None:
    """The plan beside the run, as the page writes it."""
    rows = [
        {
            "stage": line.stage,
            "figure": f"{table.title}: {line.figure}".removesuffix(": "),
            "planned": f"{line.planned} ({line.span})" if line.span else line.planned,
            "measured": line.measured,
            "off by": line.error,
        }
        for table in tables_of(comparison, None)
        for line in table.lines
    ]
    create_table_artifact(rows, key=f"{name}-compared", description="The plan held against what happened")


@a_picture
def _publish(outcome: Outcome) -> None:
    """Figures alone: no student text leaves the page's own settings."""
    rows = [
        {"stage": r.stage, "state": "cached" if r.cached else "run", "took": duration(r.seconds)}
        for r in outcome.stages
    ]
    create_table_artifact(
        rows, key=f"{outcome.name}-stages", description="What was taken from the store, what was done"
    )
    lines = [f"# {agreement_title(outcome)}", "", "| | QWK |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in agreement(outcome)]
    lines += ["", outcome.verdict.reason, "", f"Report: `{outcome.page}`", "", f"Adapter: `{outcome.adapter}`"]
    create_markdown_artifact("\n".join(lines), key=f"{outcome.name}-agreement", description="Agreement with the raters")
