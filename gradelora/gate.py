"""The gate: promote an adapter only where it is shown to agree better than what there was before.

Two conditions, both on `gate.split`:
1. The lower bound of the QWK gain's interval lies above `gate.margin`.
2. No question and no group with at least MIN_ITEMS items loses more than
   `gate.max_question_loss` QWK.  A loss counts where its own interval lies below 0 as well:
   with 14 answers a question, two equally good scorers differ by 0.3 QWK in one question out
   of ten by chance alone.  A loss that its interval does not bear out is listed, and stops nothing.

The rival is the champion of the deployment where it was evaluated on the same items, else the
base.  When the data have changed, evaluate the champion's adapter on the new data and hand
`judge` a copy of the champion with that report and digest: then it is the rival again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradelora.artifacts import Adapter, EvalReport, Frozen, Interval, Split
from gradelora.champion import Champion, champion_of, promote, refuse
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.errors import BadConfig

if TYPE_CHECKING:
    from gradelora.evaluate.metrics import Slice

MIN_ITEMS = 10
Rival = Literal["base", "champion"]


class PartGain(Frozen):
    """The gain in one question or group; `items` may be too few to judge it."""

    kind: Literal["question", "group"]
    name: str
    items: int
    gain: Interval


class Comparison(Frozen):
    """An adapter against its rival on one split; `why` says why it is this rival."""

    rival: Rival
    why: str
    split: Split
    items: int
    unit: Literal["question", "student", "record"]
    units: int
    students: int
    confidence_level: float
    rival_qwk: Interval
    adapter_qwk: Interval
    gain: Interval
    parts: tuple[PartGain, ...]


class Verdict(Frozen):
    """Promote or refuse, in one sentence with its figures.

    `losses` are the parts that refuse the adapter, `doubtful` those that lost as much without
    their interval bearing it out, `not_judged` those with fewer than MIN_ITEMS items or no QWK.
    `power` is the probability that items like these show a true gain of `expected_gain`.
    """

    promoted: bool
    reason: str
    margin: float
    max_question_loss: float
    expected_gain: float
    power: float | None
    comparison: Comparison
    losses: tuple[PartGain, ...]
    doubtful: tuple[PartGain, ...]
    not_judged: tuple[PartGain, ...]


def settle(
    root: Path,
    name: str,
    config: GateConfig,
    evaluation: EvaluateConfig,
    adapter: Adapter,
    report: EvalReport,
    data_digest: str,
) -> Verdict:
    """`judge` against the champion of the deployment `name`, and move its pointer or keep the refusal.

    Raises BadConfig where the split has no items, Damaged where the record of champions is.
    """
    verdict = judge(config, evaluation, adapter, report, data_digest, champion_of(root, name))
    keep = promote if verdict.promoted else refuse
    keep(root, name, adapter=adapter, report=report, data_digest=data_digest, reason=verdict.reason)
    return verdict


def judge(
    config: GateConfig,
    evaluation: EvaluateConfig,
    adapter: Adapter,
    report: EvalReport,
    data_digest: str,
    champion: Champion | None,
) -> Verdict:
    """Compare with the champion or the base, and decide.

    `data_digest` is that of the EncodedDataset which `report` was made from.
    Raises BadConfig where the split has no items.
    """
    if champion is not None and champion.adapter.digest == adapter.digest:
        # Against itself it gains nothing; the figures that tell something are those against the base.
        verdict = decide(config, compare_with_base(config.split, report, "this adapter is the champion itself"))
        return verdict.model_copy(
            update={"promoted": True, "reason": f"already the champion since {champion.promoted}"}
        )
    why = _why_base(champion, report, data_digest, config.split)
    if champion is None or why:
        return decide(config, compare_with_base(config.split, report, why))
    return decide(config, compare_with_champion(config.split, evaluation, report, champion))


def decide(config: GateConfig, comparison: Comparison) -> Verdict:
    """The two conditions of this module; a pure function of its arguments."""
    enough = [p for p in comparison.parts if p.items >= MIN_ITEMS and p.gain.value is not None]
    worse = [p for p in enough if p.gain.value is not None and -p.gain.value > config.max_question_loss]
    losses = tuple(p for p in worse if p.gain.high is not None and p.gain.high < 0)
    low = comparison.gain.low
    shown = low is not None and low > config.margin
    chance = power(config, comparison)
    return Verdict(
        promoted=shown and not losses,
        reason=_reason(config, comparison, shown, losses) + _in_doubt(config, None if shown else chance),
        margin=config.margin,
        max_question_loss=config.max_question_loss,
        expected_gain=config.expected_gain,
        power=chance,
        comparison=comparison,
        losses=losses,
        doubtful=tuple(p for p in worse if p not in losses),
        not_judged=tuple(p for p in comparison.parts if p not in enough),
    )


def power(config: GateConfig, comparison: Comparison) -> float | None:
    """How probably items like these show a true gain of `gate.expected_gain`; None without an interval.

    The first condition alone, by the noncentral t distribution with the measured standard error.
    """
    from scipy import stats

    from gradelora.evaluate.intervals import t_quantile

    gain, units = comparison.gain, min(comparison.units, comparison.students or comparison.units)
    if gain.value is None or gain.high is None or gain.high <= gain.value:
        return None
    quantile = t_quantile(comparison.confidence_level, units)
    error = (gain.high - gain.value) / quantile
    return round(float(stats.nct.sf(quantile, units - 1, (config.expected_gain - config.margin) / error)), 4)


def _in_doubt(config: GateConfig, chance: float | None) -> str:
    """What a refusal for want of proof is worth; empty where the proof is there, or nothing can be said."""
    if chance is None:
        return ""
    return f"; a true gain of {config.expected_gain:.3f} would be shown in {100 * chance:.0f} % of such evaluations"


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
    split: Split, evaluation: EvaluateConfig, report: EvalReport, champion: Champion
) -> Comparison:
    """From both predictions of the same items, paired.  Raises BadConfig where the split has no items."""
    from gradelora.evaluate.measure import Bootstrap
    from gradelora.evaluate.predictions import FILE, read_predictions
    from gradelora.evaluate.sections import slices_of

    theirs = {p.item_id: p.adapter_score for p in read_predictions(champion.report.path / FILE)}
    ours = [p for p in read_predictions(report.path / FILE) if p.split == split]
    if not ours:
        raise BadConfig(_no_items(split))
    # The champion's scores stand where the base's stood; everything else is the same measurement.
    paired = [p.model_copy(update={"base_score": theirs[p.item_id]}) for p in ours]
    bootstrap = Bootstrap(evaluation.resamples, evaluation.confidence_level, evaluation.seed)
    why = f"the champion since {champion.promoted} was evaluated on the same items"
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
    questions = [PartGain(kind="question", name=s.name, items=s.items, gain=s.gain.qwk) for s in by_question]
    groups = [PartGain(kind="group", name=s.name, items=s.items, gain=s.gain.qwk) for s in by_group]
    return Comparison(
        rival=rival,
        why=why,
        split=split,
        items=whole.items,
        unit=whole.unit,
        units=whole.units,
        students=whole.students,
        confidence_level=confidence_level,
        rival_qwk=whole.base.qwk,
        adapter_qwk=whole.adapter.qwk,
        gain=whole.gain.qwk,
        parts=(*questions, *groups),
    )


def _no_items(split: Split) -> str:
    return f"gate.split={split} has no items; set a split that has, or add data"


def _why_base(champion: Champion | None, report: EvalReport, data_digest: str, split: Split) -> str:
    """Why the champion cannot be the rival; empty where it can."""
    from gradelora.evaluate.predictions import FILE, read_predictions

    if champion is None:
        return "this deployment has no champion yet"
    if champion.data_digest != data_digest:
        return f"the champion since {champion.promoted} was evaluated on other data"
    file = champion.report.path / FILE
    if not file.is_file():
        return f"the predictions of the champion since {champion.promoted} are gone from the store"
    theirs = {p.item_id for p in read_predictions(file)}
    ours = {p.item_id for p in read_predictions(report.path / FILE) if p.split == split}
    return "" if ours <= theirs else f"the champion since {champion.promoted} was not evaluated on these items"


def _reason(config: GateConfig, comparison: Comparison, shown: bool, losses: Sequence[PartGain]) -> str:
    gain = comparison.gain
    rival = "the base" if comparison.rival == "base" else "the champion"
    students = f", {comparison.students} students" if comparison.students else ""
    where = f"on {comparison.split} ({comparison.items} items, {comparison.units} {comparison.unit}s{students})"
    figures = f"QWK {_spell(comparison.adapter_qwk.value)} against {rival}'s {_spell(comparison.rival_qwk.value)}"
    if gain.value is None or gain.low is None or gain.high is None:
        return f"refused {where}: {figures}, and the gain has no interval ({gain.reason or 'too few items'})"
    level = f"{100 * comparison.confidence_level:g} %"
    interval = f"gain {_spell(gain.value)}, {level} interval {_spell(gain.low)} to {_spell(gain.high)}"
    if not shown:
        return f"refused {where}: {figures}; {interval}, whose lower end is not above the margin {config.margin:.3f}"
    if losses:
        worst = min(losses, key=lambda part: part.gain.value or 0.0)
        return (
            f"refused {where}: {figures}; {interval}, but {worst.kind} {worst.name} loses "
            f"{_spell(-(worst.gain.value or 0.0))} QWK ({worst.items} items, {len(losses)} such), "
            f"{config.max_question_loss:.3f} allowed"
        )
    return (
        f"promoted {where}: {figures}; {interval}, above the margin {config.margin:.3f}; "
        f"no question or group is shown to lose more than {config.max_question_loss:.3f}"
    )


def _spell(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
