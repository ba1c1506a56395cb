"""The gate: promote an adapter only where it is shown to agree better than what there was before.

Two conditions, both on `gate.split`:
1. The lower bound of the QWK gain's interval lies above `gate.margin`.
2. No question and no group with at least MIN_ITEMS items is shown to lose more than
   `gate.max_question_loss` QWK: its own interval lies below 0, and still does after Holm's
   correction for as many questions or groups as there are (`gradelora.losses`).  What loses as much
   without that is listed, and stops nothing.

The rival is the champion of the deployment, or the base where there is none.  Where the data have
changed since the champion was evaluated, it is evaluated on the new data: to beat the base is not
enough to replace a champion.  An adapter that was rolled back does not come back by itself.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, Frozen
from gradelora.champion import Champion, ChampionChanged, Champions, promote, read_champions, refuse
from gradelora.comparison import Comparison, PartGain, compare_with_base, compare_with_champion, measured_on
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.errors import Damaged
from gradelora.losses import Losses, judged, losses_of, worth_a_look
from gradelora.power import power
from gradelora.receipt import verify

# The report of a champion's adapter on the items that the new one was evaluated on.
Examine = Callable[[Champion], EvalReport]
# So many parts are named in a sentence, the worst first.
NAMED = 3


class Verdict(Frozen):
    """Promote or refuse, in one sentence with its figures.

    `bar` forbids promotion whatever the figures, and says why; empty where nothing does.
    `losses` are the parts that refuse the adapter, `doubtful` those that lost as much without being
    shown to, `not_judged` those with fewer than MIN_ITEMS items or no QWK.  Of the `tested` parts,
    `by_chance` are expected to lose as much with an interval below 0 where both are equally good.
    `power` is the probability that items like these let a true gain of `expected_gain` pass.
    """

    promoted: bool
    reason: str
    bar: str
    margin: float
    max_question_loss: float
    expected_gain: float
    power: float | None
    comparison: Comparison
    losses: tuple[PartGain, ...]
    doubtful: tuple[PartGain, ...]
    not_judged: tuple[PartGain, ...]
    tested: int
    by_chance: float


def settle(
    root: Path,
    name: str,
    config: GateConfig,
    evaluation: EvaluateConfig,
    adapter: Adapter,
    report: EvalReport,
    data: EncodedDataset,
    examine: Examine,
    *,
    again: bool = False,
) -> Verdict:
    """`judge` against the champion of the deployment `name`, and move its pointer or keep the refusal.

    Where another run promotes meanwhile, this adapter is judged against that one.
    Raises BadConfig where the split has no items, Damaged where the record of champions is.
    """
    while True:
        champions = read_champions(root, name)
        verdict = judge(config, evaluation, adapter, report, data.digest, champions, examine, again=again)
        kept: dict[str, Any] = {
            "adapter": adapter,
            "report": report,
            "data_digest": data.digest,
            "reason": verdict.reason,
        }
        if not verdict.promoted:
            refuse(root, name, **kept)
            return verdict
        try:
            promote(root, name, **kept, data_key=data.path.name, since=champions)
        except ChampionChanged:
            continue
        return verdict


def judge(
    config: GateConfig,
    evaluation: EvaluateConfig,
    adapter: Adapter,
    report: EvalReport,
    data_digest: str,
    champions: Champions,
    examine: Examine,
    *,
    again: bool = False,
) -> Verdict:
    """Compare with the champion or the base, and decide; `again` lets an adapter pass that was rolled back.

    `data_digest` is that of the EncodedDataset which `report` was made from.
    Raises BadConfig where the split has no items.
    """
    held = champions.champion
    if held is not None and held.adapter.digest == adapter.digest:
        # Against itself it gains nothing; the figures that tell something are those against the base.
        verdict = decide(config, compare_with_base(config.split, report, "this adapter is the champion itself"))
        return verdict.model_copy(update={"promoted": True, "reason": f"already the champion since {held.promoted}"})
    stepped_back = champions.rolled_back(adapter.digest)
    bar = f"it was rolled back at {stepped_back}; `gradelora gate --again` judges it anew" if stepped_back else ""
    if held is None:
        comparison = compare_with_base(config.split, report, "this deployment has no champion yet")
        return decide(config, comparison, "" if again else bar)
    beyond = _beyond_comparison(held, adapter)
    if beyond:
        return decide(config, compare_with_base(config.split, report, beyond), beyond)
    why = f"the champion since {held.promoted} was evaluated on the same items"
    if not measured_on(held, report, data_digest, config.split):
        held = held.model_copy(update={"report": examine(held), "data_digest": data_digest})
        why = f"the champion since {held.promoted}, evaluated anew on these items"
    return decide(config, compare_with_champion(config.split, evaluation, report, held, why), "" if again else bar)


def _beyond_comparison(champion: Champion, adapter: Adapter) -> str:
    """Why the champion cannot be asked about these items; empty where it can."""
    theirs, ours = champion.adapter, adapter
    remedy = "`gradelora rollback` it to compare with the base, or give this configuration another name"
    if (theirs.repo_id, theirs.commit) != (ours.repo_id, ours.commit):
        which = f"{theirs.repo_id} at {theirs.commit[:12]}"
        return f"the champion since {champion.promoted} belongs to another base, {which}; {remedy}"
    try:
        verify(theirs.path, theirs.files, deep=False)
    except Damaged as damage:
        return f"the champion since {champion.promoted} cannot be asked ({damage}); {remedy}"
    return ""


def decide(config: GateConfig, comparison: Comparison, bar: str = "") -> Verdict:
    """The two conditions of this module; a pure function of its arguments."""
    found, low = losses_of(config, comparison), comparison.gain.low
    shown = low is not None and low > config.margin
    chance = power(config, comparison)
    reason = _reason(config, comparison, shown, found.proven, bar)
    return Verdict(
        promoted=shown and not found.proven and not bar,
        reason=reason + _in_doubt(config, None if shown else chance) + _suspected(found),
        bar=bar,
        margin=config.margin,
        max_question_loss=config.max_question_loss,
        expected_gain=config.expected_gain,
        power=chance,
        comparison=comparison,
        losses=found.proven,
        doubtful=found.doubtful,
        not_judged=tuple(p for p in comparison.parts if not judged(p)),
        tested=found.tested,
        by_chance=found.by_chance,
    )


def _in_doubt(config: GateConfig, chance: float | None) -> str:
    """What a refusal for want of proof is worth; empty where the proof is there, or nothing can be said."""
    if chance is None:
        return ""
    return f"; a true gain of {config.expected_gain:.3f} would pass in {100 * chance:.0f} % of such evaluations"


def _suspected(found: Losses) -> str:
    """What its own interval alone shows to lose too much, beside what chance makes of that; empty where nothing."""
    alone = worth_a_look(found.doubtful)
    if not alone:
        return ""
    named = ", ".join(f"{p.kind} {p.name} ({_spell(p.gain.value)}, {p.items} items)" for p in alone[:NAMED])
    more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
    return (
        f"; worth a look: {named}{more}, too large a loss by its own interval, "
        f"as {found.by_chance:.1f} of {found.tested} would show by chance"
    )


def _reason(config: GateConfig, comparison: Comparison, shown: bool, losses: Sequence[PartGain], bar: str) -> str:
    gain, where = comparison.gain, _where(comparison)
    rival = "the base" if comparison.rival == "base" else "the champion"
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
    if bar:
        return f"refused {where}: {figures}; {interval}, but {bar}"
    return (
        f"promoted {where}: {figures}; {interval}, above the margin {config.margin:.3f}; "
        f"no question or group is shown to lose more than {config.max_question_loss:.3f}"
    )


def _where(comparison: Comparison) -> str:
    """Which items, and what was resampled of them."""
    counted = [f"{comparison.items} items", f"{comparison.units} {comparison.unit}s"]
    if comparison.crossed:
        counted.append(f"{comparison.crossed_units} {comparison.crossed}s")
    if comparison.worth < 0.9 * min(comparison.units, comparison.crossed_units or comparison.units):
        counted.append(f"so unequal that they are worth {comparison.worth:.1f} equal ones")
    return f"on {comparison.split} ({', '.join(counted)})"


def _spell(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
