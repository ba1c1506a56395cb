"""The gate's conditions as lines: what was asked, what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gradelora.comparison import PartGain
from gradelora.gate import Verdict
from gradelora.losses import worth_a_look
from gradelora.report.figures import number, span
from gradelora.report.sources import Question

NAMED = 3


@dataclass(frozen=True)
class CheckLine:
    """`good` held, `bad` stopped the promotion, `soft` is said and stops nothing."""

    kind: Literal["good", "bad", "soft"]
    text: str


def checks(verdict: Verdict, questions: Mapping[str, Question]) -> list[CheckLine]:
    """Two conditions, then what was too uncertain or too small to judge."""
    gain, allowed = verdict.comparison.gain, number(verdict.max_question_loss)
    shown = gain.low is not None and gain.low > verdict.margin
    measured = f"{number(gain.value, signed=True)} ({span(gain)})" if gain.value is not None else f"n/a, {gain.reason}"
    lines = [
        CheckLine(
            "good" if shown else "bad", f"Gain's lower end above {number(verdict.margin)} QWK: measured {measured}"
        ),
        CheckLine("bad", f"A loss above {allowed} QWK: {_named(verdict.losses, questions)}")
        if verdict.losses
        else CheckLine("good", f"No question or group is shown to lose more than {allowed} QWK"),
    ]
    if verdict.bar:
        lines.append(CheckLine("bad", f"{verdict.bar[:1].upper()}{verdict.bar[1:]}"))
    if not shown and verdict.power is not None:
        expected = f"a true gain of {number(verdict.expected_gain)} would pass"
        lines.append(CheckLine("soft", f"Items like these: {expected} in {100 * verdict.power:.0f} % of evaluations"))
    alone = worth_a_look(verdict.doubtful)
    if alone:
        expected = f"as {verdict.by_chance:.1f} of {verdict.tested} would show by chance"
        told = f"Worth a look, as large a loss by its own interval, {expected}: {_named(alone, questions)}"
        lines.append(CheckLine("soft", told))
    chance = [part for part in verdict.doubtful if part.gain.high is not None and part not in alone]
    if chance:
        lines.append(CheckLine("soft", f"As large a loss, but within chance: {_named(chance, questions)}"))
    open_ended = [part for part in verdict.doubtful if part.gain.high is None]
    if open_ended:
        lines.append(CheckLine("soft", f"As large a loss, without an interval: {_named(open_ended, questions)}"))
    if verdict.not_judged:
        lines.append(CheckLine("soft", f"Too small to judge: {_named(verdict.not_judged, questions)}"))
    return lines


def _named(parts: Sequence[PartGain], questions: Mapping[str, Question]) -> str:
    """The first few by name with their gains, and how many more."""
    told = []
    for part in parts[:NAMED]:
        name = questions[part.name].name if part.name in questions else part.name
        gain = f"{number(part.gain.value, signed=True)}, " if part.gain.value is not None else ""
        told.append(f"{part.kind} {name} ({gain}{part.items} items)")
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return ", ".join(told) + more
