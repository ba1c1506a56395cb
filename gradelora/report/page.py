"""The HTML page: every figure computed here, every mark drawn in the templates."""

from typing import Any

import jinja2

from gradelora.evaluate.metrics import Metrics, Section, read_metrics
from gradelora.report import agreement, figures, foretold, pace, plots, run, sources
from gradelora.report.given import ReportInput
from gradelora.report.use import commands
from gradelora.report.verdict import checks


def render(given: ReportInput) -> str:
    """The page's HTML.  Raises OSError where an artifact's file is gone."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradelora.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=figures.number, span=figures.span, count=figures.count)
    return environment.get_template("page.html.jinja").render(_context(given))


def _context(given: ReportInput) -> dict[str, Any]:
    metrics = read_metrics(given.evaluation.path)
    questions = sources.read_questions(given.records.path)
    found = sources.read_json(given.records.path / "findings.json")
    train, validation = sources.read_history(given.adapter.path)
    headline = metrics.section(given.evaluation.split)
    assert headline is not None
    price = given.run.runtime.price_per_hour
    return {
        "given": given,
        "metrics": metrics,
        "headline": headline,
        "hero": _hero(headline),
        "checks": checks(given.verdict, questions),
        "stages": run.stage_lines(given),
        "total": run.total_line(given),
        "priced": price is not None,
        "bars": run.plan_bars(given),
        "foretold": foretold.tables_of(given.comparison, price) if given.comparison else [],
        "surprises": given.comparison.surprises if given.comparison else (),
        "lineage": run.lineage(given),
        "training": [*run.training_facts(given), *run.merge_facts(given)],
        "splits": run.split_counts(given),
        "findings": run.findings_of(found),
        "files": found["sources"],
        "loss": plots.loss_plot(train, validation) if train or validation else None,
        "pace": pace.curves(given.adapter.path),
        "sections": [_section(s, questions) for s in _ordered(metrics, headline)],
        "worst": _worst(given, questions),
        "with_text": given.run.report.show_student_text,
        "commands": commands(given),
    }


def _ordered(metrics: Metrics, headline: Section) -> list[Section]:
    """The gate's section first."""
    return [headline, *(s for s in metrics.sections if s.name != headline.name)]


def _hero(section: Section) -> dict[str, Any]:
    """The three figures that decide, on one strip."""
    whole = section.whole
    shown = agreement.strip_range([whole])
    return {
        "low": shown[0],
        "base": plots.whisker(whole.base.qwk, *shown),
        "adapter": plots.whisker(whole.adapter.qwk, *shown),
        "ceiling": plots.whisker(whole.ceiling.qwk, *shown),
        "ticks": [
            plots.Tick(round(100 * (t - shown[0]) / (1 - shown[0]), 2), figures.number(t, 1))
            for t in plots.ticks(*shown, 5)
            if t >= shown[0] - 1e-9
        ],
    }


def _section(section: Section, questions: dict[str, sources.Question]) -> dict[str, Any]:
    """One split's tables and plots."""
    shown = agreement.strip_range([section.whole, *section.by_question, *section.by_group])
    rows, records = agreement.measure_rows(section), agreement.record_rows(section)
    by_question = agreement.slice_rows(section.by_question, questions, shown)
    by_group = agreement.slice_rows(section.by_group, {}, shown)
    return {
        "name": section.name.replace("_", " "),
        "figures": section,
        "low": figures.number(shown[0], 1) if shown[0] else "0",
        "zero": round(100 * (0 - shown[0]) / (1 - shown[0]), 2),
        "rows": rows,
        "reasons": agreement.reasons(rows),
        "expected": agreement.expected_rows(section),
        "degradation": agreement.cell(section.whole.degradation, signed=True),
        "by_question": by_question,
        "by_group": by_group,
        "slice_reasons": agreement.reasons([*by_question, *by_group]),
        "matrices": [
            agreement.matrix("Base", section.whole.base_confusion),
            agreement.matrix("Adapter", section.whole.adapter_confusion),
        ],
        "base_dots": _dots(section.base_calibration.bins),
        "adapter_dots": _dots(section.adapter_calibration.bins),
        "base_ece": agreement.cell(section.base_calibration.ece),
        "adapter_ece": agreement.cell(section.adapter_calibration.ece),
        "unparseable": [agreement.cell(d.unparseable) for d in (section.base_decoding, section.adapter_decoding)],
        "records": section.records,
        "record_rows": records,
        "record_reasons": agreement.reasons(records),
        "mass": [agreement.cell(d.mass) for d in (section.base_decoding, section.adapter_decoding)],
    }


def _dots(bins: Any) -> tuple[plots.Dot, ...]:
    return plots.reliability([(b.confidence, b.accuracy, b.items) for b in bins])


def _worst(given: ReportInput, questions: dict[str, sources.Question]) -> list[agreement.WorstItem]:
    """Student text is read only where the configuration lets it be shown."""
    chosen = agreement.furthest(sources.read_predictions(given.evaluation.path), given.evaluation.split)
    answers = None
    if given.run.report.show_student_text:
        answers = sources.read_answers(given.records.path, {p["item_id"] for p in chosen})
    return agreement.worst_items(chosen, questions, answers)
