"""The model card in the Hugging Face format: YAML front matter and Markdown.

https://huggingface.co/docs/hub/model-cards, metadata as its `modelcard` specification has it.
"""

from typing import Any

import yaml

from gradelora.artifacts import Interval
from gradelora.evaluate.metrics import Metrics, Section, read_metrics
from gradelora.report.agreement import MEASURES
from gradelora.report.figures import count, number, span
from gradelora.report.given import ReportInput
from gradelora.report.run import lineage, merge_facts, training_facts
from gradelora.report.use import Handover, commands

CARD = "README.md"


def render(given: ReportInput, handover: Handover | None = None) -> str:
    """The card's text, for the adapter in the store or for what is handed over."""
    metrics = read_metrics(given.evaluation.path)
    headline = metrics.section(given.evaluation.split)
    assert headline is not None
    front = yaml.safe_dump(_metadata(given, headline, _is_merged(handover)), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(given, metrics, handover)}"


def _is_merged(handover: Handover | None) -> bool:
    return handover is not None and handover.kind == "merged"


def _metadata(given: ReportInput, headline: Section, merged: bool) -> dict[str, Any]:
    """Front matter: only measures that are defined."""
    split = headline.name
    results = [
        {
            "task": {"type": "text-generation", "name": "Scoring student answers"},
            "dataset": {"name": f"{given.run.name}, {split.replace('_', ' ')}", "type": "private", "split": split},
            "metrics": [
                {"type": field, "name": name, "value": getattr(headline.whole.adapter, field).value}
                for field, name, _ in MEASURES
                if getattr(headline.whole.adapter, field).value is not None
            ],
        }
    ]
    return {
        **_license(given),
        "base_model": given.snapshot.repo_id,
        "base_model_relation": "finetune" if merged else "adapter",
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "automated-scoring", "gradelora"],
        "model-index": [{"name": given.run.name, "results": results}],
    }


def _license(given: ReportInput) -> dict[str, str]:
    """The base's, as its own card names it: what is made of a model stands under its terms."""
    card = given.snapshot.path / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, *front = text.split("---\n", 2) if text.startswith("---\n") else [""]
    try:
        fields = yaml.safe_load(front[0]) if front else {}
    except yaml.YAMLError:
        # Somebody else's card: what cannot be read says nothing.
        fields = {}
    known = fields if isinstance(fields, dict) else {}
    return {name: str(known[name]) for name in ("license", "license_name", "license_link") if known.get(name)}


def _body(given: ReportInput, metrics: Metrics, handover: Handover | None) -> str:
    verdict, base = given.verdict, f"`{given.snapshot.repo_id}`"
    what = f"{base} with a LoRA adapter merged into it," if _is_merged(handover) else f"A LoRA adapter for {base}"
    parts = [
        f"# {given.run.name}",
        f"{what} that scores student answers against a rubric.",
        f"**{'Promoted' if verdict.promoted else 'Refused'}.** {verdict.reason[:1].upper()}{verdict.reason[1:]}.",
        "## Intended use",
        "Scores for answers to questions like those it was trained on, in the same layout, beside human raters. "
        "Not for decisions about a person without a human who checks them; unseen questions only as far as the "
        "figures below cover them.",
        "## Training",
        _list([*training_facts(given), ("Items", _items(given))]),
    ]
    if _is_merged(handover):
        parts += ["## Merge", _list(merge_facts(given))]
    for section in metrics.sections:
        parts += [f"## Agreement on {section.name.replace('_', ' ')}", _agreement(section, metrics)]
    parts += ["## Use", *(f"{c.title}:\n\n```{c.language}\n{c.text}\n```" for c in commands(given, handover))]
    parts += ["## Lineage", _list([(what, f"`{value}`") for what, value in lineage(given)])]
    return "\n\n".join(parts) + "\n"


def _items(given: ReportInput) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count(n)}" for name, n in given.records.splits.model_dump().items())


def _list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {what}: {value}" for what, value in rows)


def _agreement(section: Section, metrics: Metrics) -> str:
    """A table of base, adapter, second rater and gain."""
    whole = section.whole
    lines = [
        f"{count(whole.items)} items of {section.questions} questions, {metrics.confidence_level:.0%} intervals "
        f"resampled by {whole.unit}{f' and {whole.crossed}' if whole.crossed else ''}. Expected calibration error "
        f"{number(section.adapter_calibration.ece.value)}; greedy decoding writes no allowed score for "
        f"{100 * (section.adapter_decoding.unparseable.value or 0):.1f} % of the answers.",
        "",
        "| | Base | Adapter | Second rater | Gain |",
        "|---|---|---|---|---|",
    ]
    for field, name, _ in MEASURES:
        cells = [_cell(getattr(a, field)) for a in (whole.base, whole.adapter, whole.ceiling)]
        gain = getattr(whole.gain, field, None)
        lines.append(f"| {name} | {' | '.join(cells)} | {_cell(gain, signed=True) if gain else ''} |")
    if whole.degradation.value is not None:
        told = f"{_cell(whole.degradation, signed=True)} on the {count(whole.ceiling.items)} doubly scored items"
        lines += ["", f"Second rater's QWK less the adapter's: {told}."]
    return "\n".join(lines)


def _cell(figure: Interval, signed: bool = False) -> str:
    interval = span(figure)
    return number(figure.value, signed=signed) + (f" ({interval})" if interval else "")
