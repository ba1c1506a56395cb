"""An adapter beside its rival on the same items: the figures that the gate decides on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gradelora.artifacts import EvalReport, Frozen, Interval, Split
from gradelora.champion import Champion
from gradelora.config import EvaluateConfig
from gradelora.errors import BadConfig

if TYPE_CHECKING:
    from gradelora.evaluate.metrics import Slice

Rival = Literal["base", "champion"]


class PartGain(Frozen):
    """The gain in one question or group; `items` may be too few to judge it, `worth` is its slice's."""

    kind: Literal["question", "group"]
    name: str
    items: int
    worth: float
    gain: Interval


class Comparison(Frozen):
    """An adapter against its rival on one split; `why` says why it is this rival.

    `unit` to `worth` are those of the whole split's slice (gradelora.evaluate.metrics.Slice).
    """

    rival: Rival
    why: str
    split: Split
    items: int
    unit: Literal["question", "student", "record"]
    units: int
    crossed: Literal["student", "record"] | None
    crossed_units: int
    worth: float
    confidence_level: float
    rival_qwk: Interval
    adapter_qwk: Interval
    gain: Interval
    parts: tuple[PartGain, ...]


def compare_with_base(split: Split, report: EvalReport, why: str) -> Comparison:
    """From the report's own figures.  Raises BadConfig where the split has no items."""
    from gradelora.evaluate.metrics import read_metrics

    metrics = read_metrics(report.path)
    section = metrics.section(split)
    if section is None:
        raise BadConfig(_no_items(split))
    slices = (section.whole, section.by_question, section.by_group)
    return comparison_of("base", why, split, metrics.confidence_level, *slices)


def compare_with_champion(
    split: Split, evaluation: EvaluateConfig, report: EvalReport, champion: Champion, why: str
) -> Comparison:
    """From both predictions of the items that both have scored, paired.

    Raises BadConfig where the split has no such items.
    """
    from gradelora.evaluate.measure import Bootstrap
    from gradelora.evaluate.predictions import FILE, read_predictions
    from gradelora.evaluate.sections import slices_of

    theirs = {p.item_id: p.adapter_score for p in read_predictions(champion.report.path / FILE)}
    ours = [p for p in read_predictions(report.path / FILE) if p.split == split and p.item_id in theirs]
    if not ours:
        raise BadConfig(_no_items(split))
    # The champion's scores stand where the base's stood; everything else is the same measurement.
    paired = [p.model_copy(update={"base_score": theirs[p.item_id]}) for p in ours]
    bootstrap = Bootstrap(evaluation.resamples, evaluation.confidence_level, evaluation.seed)
    return comparison_of("champion", why, split, evaluation.confidence_level, *slices_of(split, paired, bootstrap))


def comparison_of(
    rival: Rival,
    why: str,
    split: Split,
    confidence_level: float,
    whole: "Slice",
    by_question: Sequence["Slice"],
    by_group: Sequence["Slice"],
) -> Comparison:
    """The slices' QWK gains, `base` in them being the rival."""
    parts = [("question", part) for part in by_question] + [("group", part) for part in by_group]
    return Comparison(
        rival=rival,
        why=why,
        split=split,
        items=whole.items,
        unit=whole.unit,
        units=whole.units,
        crossed=whole.crossed,
        crossed_units=whole.crossed_units,
        worth=whole.worth,
        confidence_level=confidence_level,
        rival_qwk=whole.base.qwk,
        adapter_qwk=whole.adapter.qwk,
        gain=whole.gain.qwk,
        parts=tuple(PartGain(kind=k, name=s.name, items=s.items, worth=s.worth, gain=s.gain.qwk) for k, s in parts),
    )


def measured_on(champion: Champion, report: EvalReport, data_digest: str, split: Split) -> bool:
    """Whether the champion's own evaluation has scored all items of `report` in that split."""
    from gradelora.evaluate.predictions import FILE, read_predictions

    file = champion.report.path / FILE
    if champion.data_digest != data_digest or not file.is_file():
        return False
    theirs = {p.item_id for p in read_predictions(file)}
    return {p.item_id for p in read_predictions(report.path / FILE) if p.split == split} <= theirs


def _no_items(split: Split) -> str:
    return f"gate.split={split} has no items; set a split that has, or add data"
