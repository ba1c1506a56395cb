"""Metrics as rows of tables: base, adapter and second rater side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradelora.artifacts import Interval
from gradelora.evaluate.metrics import Agreement, Baselines, Confusion, Section, Slice
from gradelora.report.figures import number, points, span
from gradelora.report.plots import Whisker, whisker
from gradelora.report.sources import Question

# Field of Agreement, what it is called, what it means.
MEASURES = (
    ("qwk", "QWK", "quadratic weighted kappa, all items pooled"),
    ("mean_question_qwk", "QWK, mean of questions", "each question counts the same"),
    ("within_question_qwk", "QWK within questions", "no credit for knowing which question yields more points"),
    ("exact", "Exact agreement", "share of items with the human score"),
    ("adjacent", "Adjacent agreement", "share within one point"),
    ("within_step", "Within one step", "of the question's own scale: half a point where there are half points"),
    ("pearson", "Pearson correlation", ""),
    ("mae", "Mean absolute error", "points; less is better"),
    ("rmse", "Root mean squared error", "points; less is better"),
    ("smd", "Standardised mean difference", "0 is neither stricter nor milder than the raters"),
    ("prmse", "PRMSE", "share of the true score's variance explained, rater noise removed"),
)
# Of sums over a paper's items: one scale, no questions.
RECORD_MEASURES = ("qwk", "exact", "pearson", "mae", "smd")
WORST = 12


@dataclass(frozen=True)
class Cell:
    """A figure, its interval under it, and why it is undefined if it is."""

    value: str
    span: str
    reason: str


@dataclass(frozen=True)
class MeasureRow:
    """One measure: a column for each scorer; `gain` None where the measure has none, baselines for items alone."""

    name: str
    meaning: str
    majority: Cell | None
    length: Cell | None
    base: Cell
    adapter: Cell
    ceiling: Cell
    gain: Cell | None


@dataclass(frozen=True)
class SliceRow:
    """QWK on one question or group, and the marks of its strip."""

    name: str
    text: str
    items: int
    base: Cell
    adapter: Cell
    ceiling: Cell
    gain: Cell
    shift: Cell
    worse: bool
    base_mark: Whisker | None
    adapter_mark: Whisker | None
    ceiling_mark: Whisker | None


@dataclass(frozen=True)
class Matrix:
    """Human scores down, given scores across; `rows` are (label, [(count, share of the row)])."""

    title: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True)
class WorstItem:
    """An item on which the adapter is furthest from the human score; `answer` only where allowed."""

    item_id: str
    question: str
    human: str
    adapter: str
    base: str
    maximum: str
    confidence: str
    answer: str | None


def cell(figure: Interval, signed: bool = False) -> Cell:
    """One figure as it is written."""
    return Cell(number(figure.value, signed=signed), span(figure), figure.reason if figure.value is None else "")


def measure_rows(section: Section) -> list[MeasureRow]:
    """Every measure on all items of one section."""
    return [_measure_row(section.whole, *measure, section.baselines) for measure in MEASURES]


def expected_rows(section: Section) -> list[tuple[str, Cell, Cell]]:
    """What the expected score has of the measures: base and adapter."""
    base, adapter = section.base_expected, section.adapter_expected
    names = {field: name for field, name, _ in MEASURES}
    return [(names[f], cell(getattr(base, f)), cell(getattr(adapter, f))) for f in ("pearson", "rmse", "prmse")]


def record_rows(section: Section) -> list[MeasureRow]:
    """The measures that sums over a paper's items have; none where no paper has several items here."""
    if not section.records.items:
        return []
    return [_measure_row(section.records, *m, None) for m in MEASURES if m[0] in RECORD_MEASURES]


def _measure_row(part: Slice, field: str, name: str, meaning: str, plain: Baselines | None) -> MeasureRow:
    gain = getattr(part.gain, field, None)

    def of(agreement: Agreement) -> Cell:
        return cell(getattr(agreement, field), signed=field == "smd")

    return MeasureRow(
        name=name,
        meaning=meaning,
        majority=None if plain is None else of(plain.majority),
        length=None if plain is None else of(plain.length),
        base=of(part.base),
        adapter=of(part.adapter),
        ceiling=of(part.ceiling),
        gain=None if gain is None else cell(gain, signed=True),
    )


def reasons(rows: Sequence[MeasureRow] | Sequence[SliceRow]) -> list[str]:
    """Every reason for an n/a, once, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        for value in vars(row).values():
            if isinstance(value, Cell) and value.reason:
                found[value.reason] = None
    return list(found)


def strip_range(slices: Sequence[Slice]) -> tuple[float, float]:
    """What a strip shows: from the lowest interval, in tenths and at most 0, up to 1."""
    figures = [f for s in slices for f in (s.base.qwk, s.adapter.qwk, s.ceiling.qwk)]
    lowest = min((v for f in figures for v in (f.value, f.low) if v is not None), default=0.0)
    return min(0.0, (lowest * 10 // 1) / 10), 1.0


def slice_rows(
    slices: Sequence[Slice], questions: Mapping[str, Question], shown: tuple[float, float]
) -> list[SliceRow]:
    """QWK by question or group, the smallest gain first: that is where harm would be."""
    ordered = sorted(slices, key=lambda s: (s.gain.qwk.value is None, s.gain.qwk.value or 0.0, s.name))
    return [_slice_row(s, questions.get(s.name), shown) for s in ordered]


def _slice_row(part: Slice, question: Question | None, shown: tuple[float, float]) -> SliceRow:
    gain = part.gain.qwk
    return SliceRow(
        name=question.name if question else part.name,
        text=question.text if question else "",
        items=part.items,
        base=cell(part.base.qwk),
        adapter=cell(part.adapter.qwk),
        ceiling=cell(part.ceiling.qwk),
        gain=cell(gain, signed=True),
        shift=cell(part.adapter.smd, signed=True),
        worse=gain.value is not None and gain.value < 0,
        base_mark=whisker(part.base.qwk, *shown),
        adapter_mark=whisker(part.adapter.qwk, *shown),
        ceiling_mark=whisker(part.ceiling.qwk, *shown),
    )


def matrix(title: str, confusion: Confusion) -> Matrix:
    """A confusion matrix, shaded by the share of each human score."""
    labels = tuple(points(label) for label in confusion.labels)
    rows = []
    for label, counts in zip(labels, confusion.counts, strict=True):
        total = max(sum(counts), 1)
        rows.append((label, tuple((n, round(n / total, 3)) for n in counts)))
    return Matrix(title, labels, tuple(rows))


def furthest(predictions: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Any]]:
    """The items of a split whose adapter score is furthest off, as a share of the maximum."""
    inside = [p for p in predictions if p["split"] == split and p["adapter_score"] != p["score"]]
    return sorted(inside, key=lambda p: (-abs(p["adapter_score"] - p["score"]) / p["max_score"], p["item_id"]))[:WORST]


def worst_items(
    predictions: Sequence[Mapping[str, Any]], questions: Mapping[str, Question], answers: Mapping[str, str] | None
) -> list[WorstItem]:
    """Rows for `furthest` items; `answers` None where student text may not be shown."""
    return [
        WorstItem(
            item_id=p["item_id"],
            question=questions[p["question_key"]].name if p["question_key"] in questions else p["question_key"][:8],
            human=points(p["score"]),
            adapter=points(p["adapter_score"]),
            base=points(p["base_score"]),
            maximum=points(p["max_score"]),
            confidence=number(p["adapter_confidence"]),
            answer=None if answers is None else answers.get(p["item_id"], ""),
        )
        for p in predictions
    ]
