"""The gate's verdicts, and the pointer to the champion."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.gate_worlds import BASE_NOISE, ONE_LARGE, World, even, predictions, true_gain
from bench.simulate_gate import ALPHA, data_of, evaluated, judged, settled
from gradelora.artifacts import Adapter, EvalReport, Interval
from gradelora.champion import Champion, Champions, champion_of, promote, read_champions, rollback
from gradelora.comparison import Comparison, PartGain
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.errors import BadConfig, Damaged
from gradelora.evaluate.predictions import FILE, Prediction
from gradelora.gate import Examine, Verdict, decide, judge, settle
from gradelora.losses import holm, loss_p, worth_a_look

EVALUATION = EvaluateConfig(resamples=300)


def figure(value: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(value=value, low=low, high=high)


def comparison(gain: Interval, *parts: PartGain) -> Comparison:
    return Comparison(
        rival="base",
        why="no champion yet",
        split="unseen_answers",
        items=140,
        unit="question",
        units=10,
        crossed=None,
        crossed_units=0,
        worth=10,
        confidence_level=0.95,
        rival_qwk=figure(0.25),
        adapter_qwk=figure(0.75),
        gain=gain,
        parts=parts,
    )


def part(items: int, gain: Interval, name: str = "q7") -> PartGain:
    return PartGain(kind="question", name=name, items=items, worth=items, gain=gain)


def loses(p: float, name: str, *, loss: float = 0.4, items: int = 20) -> PartGain:
    """A question whose loss has this one-sided p."""
    degrees = items - 1
    reach = loss / stats.t.isf(p, degrees) * stats.t.isf(0.025, degrees)
    return part(items, figure(-loss, -loss - reach, -loss + reach), name)


def harmless(count: int) -> list[PartGain]:
    return [part(20, figure(0.1, -0.3, 0.5), f"h{i}") for i in range(count)]


SHOWN = figure(0.5, 0.38, 0.62)


def test_a_lower_end_above_the_margin_promotes_with_figures() -> None:
    verdict = decide(GateConfig(), comparison(figure(0.5, 0.38, 0.62)))
    assert verdict.promoted
    assert verdict.reason == (
        "promoted on unseen_answers (140 items, 10 questions): QWK 0.750 against the base's 0.250; gain 0.500, "
        "95 % interval 0.380 to 0.620, above the margin 0.000; no question or group is shown to lose more than 0.300"
    )


@pytest.mark.parametrize(("low", "margin"), [(0.0, 0.0), (-0.01, 0.0), (0.38, 0.4)])
def test_a_lower_end_at_or_below_the_margin_refuses(low: float, margin: float) -> None:
    verdict = decide(GateConfig(margin=margin, expected_gain=0.5), comparison(figure(0.5, low, 0.62)))
    assert not verdict.promoted
    assert f"whose lower end is not above the margin {margin:.3f}" in verdict.reason


def test_a_gain_without_an_interval_refuses_with_its_reason() -> None:
    gain = Interval(value=0.5, low=None, high=None, reason="no interval: a single unit cannot be resampled")
    verdict = decide(GateConfig(), comparison(gain))
    assert not verdict.promoted
    assert "a single unit cannot be resampled" in verdict.reason


def test_a_question_that_is_shown_to_lose_too_much_refuses_and_is_named() -> None:
    lost = part(14, figure(-0.4, -0.6, -0.2))
    verdict = decide(GateConfig(), comparison(figure(0.5, 0.38, 0.62), lost))
    assert not verdict.promoted
    assert verdict.losses == (lost,)
    assert "question q7 loses 0.400 QWK (14 items, 1 such), 0.300 allowed" in verdict.reason


@pytest.mark.parametrize(
    ("lost", "where"),
    [
        (part(14, figure(-0.4, -0.9, 0.1)), "doubtful"),
        (part(9, figure(-0.4, -0.6, -0.2)), "not_judged"),
        (part(14, Interval(value=None, low=None, high=None, reason="one score")), "not_judged"),
    ],
)
def test_a_loss_that_chance_or_few_items_explain_is_listed_and_stops_nothing(lost: PartGain, where: str) -> None:
    verdict = decide(GateConfig(), comparison(figure(0.5, 0.38, 0.62), lost))
    assert verdict.promoted
    assert getattr(verdict, where) == (lost,)


def test_holm_steps_down_from_the_smallest_p_until_one_stands() -> None:
    # Against .05 / 4, / 3, / 2, / 1: the third smallest stands, so the largest does, too.
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == (True, False, False, True)
    # All fall, in whatever order; the second alone would not have stood against .05 / 3.
    assert holm([0.02, 0.001, 0.03], 0.05) == (True, True, True)
    assert holm([0.02, 0.03, 0.03], 0.05) == (False, False, False)
    assert holm([], 0.05) == ()


@pytest.mark.parametrize("items", [10, 14, 60])
def test_p_is_half_of_one_minus_the_level_exactly_where_the_interval_reaches_0(items: int) -> None:
    assert loss_p(part(items, figure(-0.4, -0.8, 0.0)), 0.95) == pytest.approx(0.025)
    assert loss_p(part(items, figure(-0.4, -0.799, -0.001)), 0.95) < 0.025
    assert loss_p(part(items, figure(-0.4, -0.801, 0.001)), 0.95) > 0.025
    assert loss_p(part(items, figure(0.0, -0.4, 0.4)), 0.9) == pytest.approx(0.5)
    # A scorer that gives one score throughout: every resample shows the same loss.
    assert loss_p(part(items, figure(-0.7, -0.7, -0.7)), 0.95) == 0


@pytest.mark.parametrize(("p", "refuses"), [(0.0249, True), (0.0251, False), (0.09, False)])
def test_a_single_question_is_judged_by_its_own_interval_alone(p: float, refuses: bool) -> None:
    assert decide(GateConfig(), comparison(SHOWN, loses(p, "q7"))).promoted != refuses


def test_of_many_questions_one_that_chance_makes_does_not_refuse_and_is_listed_with_what_chance_makes() -> None:
    seen, other = loses(0.01, "q1"), loses(0.02, "q2", loss=0.5)
    verdict = decide(GateConfig(), comparison(SHOWN, *harmless(57), seen, other, part(20, figure(-0.4, -0.9, 0.1))))
    assert verdict.promoted
    assert [p.name for p in verdict.doubtful] == ["q1", "q2", "q7"]
    assert verdict.tested == 60
    # Each would need .3 of its own errors, at least 2.093: of the harmless ones, t = .3 / (.4 / 2.093) = 1.57.
    chances = [
        stats.t.sf(max(0.3 / ((p.gain.high - p.gain.value) / 2.093), 2.093), 19) for p in verdict.comparison.parts
    ]
    assert verdict.by_chance == pytest.approx(sum(chances), abs=1e-3)
    assert verdict.reason.endswith(
        "; worth a look: question q2 (-0.500, 20 items), question q1 (-0.400, 20 items), too large a loss by its own "
        f"interval, as {verdict.by_chance:.1f} of 60 would show by chance"
    )


def test_a_strong_loss_among_sixty_questions_refuses_and_helps_the_next_to_be_seen() -> None:
    ruined = loses(0.0016, "q1", loss=0.7)
    verdict = decide(GateConfig(), comparison(SHOWN, *harmless(59), ruined))
    assert (verdict.promoted, verdict.losses, verdict.doubtful) == (False, (ruined,), ())
    # .0017 is too much for the first of 61, and enough for the second.
    second = loses(0.1 / 60.5, "q2")
    assert decide(GateConfig(), comparison(SHOWN, *harmless(60), second)).promoted
    both = decide(GateConfig(), comparison(SHOWN, *harmless(59), second, loses(0.001, "q3")))
    assert {p.name for p in both.losses} == {"q2", "q3"}
    # What loses surely but little takes its step, and refuses nothing.
    little = decide(GateConfig(), comparison(SHOWN, *harmless(59), loses(0.001, "q3", loss=0.2)))
    assert (little.promoted, little.doubtful) == (True, ())


def test_groups_are_a_family_of_their_own() -> None:
    lost = loses(0.02, "north").model_copy(update={"kind": "group"})
    # One of two groups: .02 < .1 / 2; among 61 parts it would be nothing.
    groups = [lost, part(30, figure(0.1, 0.0, 0.2), "south").model_copy(update={"kind": "group"})]
    assert decide(GateConfig(), comparison(SHOWN, *harmless(60), *groups)).losses == (lost,)
    assert decide(GateConfig(), comparison(SHOWN, *harmless(60), loses(0.02, "north"))).losses == ()
    many = [p.model_copy(update={"kind": "group"}) for p in harmless(5)]
    assert decide(GateConfig(), comparison(SHOWN, *many, *groups)).losses == ()


def test_the_family_wise_level_is_that_of_the_configuration() -> None:
    parts = [*harmless(9), loses(0.008, "q1")]
    assert not decide(GateConfig(), comparison(SHOWN, *parts)).promoted
    assert decide(GateConfig(family_error=0.05), comparison(SHOWN, *parts)).promoted


def adapter(folder: Path, content: str) -> Adapter:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    return Adapter.collect(folder, repo_id="a/b", commit="c", **facts)


def report(folder: Path, made: list[Prediction]) -> EvalReport:
    return evaluated(folder, made, EVALUATION)


def good() -> list[Prediction]:
    """An adapter that agrees well beside a base that gives every answer 0."""
    made = predictions(1, even(10, 14, False, False), 0.3)
    return [p.model_copy(update={"base_score": 0.0}) for p in made]


def promoted(root: Path, made: list[Prediction], name: str = "old") -> Champion:
    """A champion of the deployment "demo", trained and evaluated on the data `data`."""
    return promote(
        root / "store",
        "demo",
        adapter=adapter(root / name, name),
        report=report(root / f"{name}-report", made),
        data_digest=data_of(root / "data").digest,
        reason="better than the base",
    )


def nobody(champion: Champion) -> EvalReport:
    raise AssertionError(f"{champion.adapter.path} was evaluated anew")


def settled_in(
    root: Path, mine: Adapter, result: EvalReport, examine: Examine = nobody, *, tokens: int = 0, again: bool = False
) -> Verdict:
    """The gate in `root`; `tokens` tells data from data."""
    data = data_of(root / "data").model_copy(update={"tokens": tokens})
    return settle(root / "store", "demo", GateConfig(), EVALUATION, mine, result, data, examine, again=again)


def test_the_rival_is_the_champion_on_the_same_items_paired(tmp_path: Path) -> None:
    made = good()
    promoted(tmp_path, made)
    # The new adapter scores as the champion, but for one item in ten: better than the base, no better than it.
    new = [p.model_copy(update={"adapter_score": p.scores[0]}) if i % 10 == 0 else p for i, p in enumerate(made)]
    mine = adapter(tmp_path / "new", "new")
    verdict = settled_in(tmp_path, mine, report(tmp_path / "new-report", new))
    assert verdict.comparison.rival == "champion"
    assert not verdict.promoted
    assert "against the champion's" in verdict.reason
    alone = judge(GateConfig(), EVALUATION, mine, report(tmp_path / "again", new), "d", Champions(), nobody)
    assert alone.promoted


@pytest.mark.parametrize("lost", ["data", "predictions", "items"])
def test_on_other_items_the_champion_is_evaluated_anew_and_is_the_rival(tmp_path: Path, lost: str) -> None:
    """Better than the base and worse than the champion: new data are no way past it."""
    made = good()
    held = promoted(tmp_path, made[:-1] if lost == "items" else made)
    if lost == "predictions":
        (held.report.path / FILE).unlink()
    worse = [p.model_copy(update={"adapter_score": p.scores[0]}) if i % 5 == 0 else p for i, p in enumerate(made)]
    asked: list[str] = []

    def examine(champion: Champion) -> EvalReport:
        asked.append(champion.adapter.digest)
        return report(tmp_path / "examined", made)

    mine, result = adapter(tmp_path / "new", "new"), report(tmp_path / "new-report", worse)
    verdict = settled_in(tmp_path, mine, result, examine, tokens=int(lost == "data"))
    assert asked == [held.adapter.digest]
    assert (verdict.comparison.rival, verdict.promoted) == ("champion", False)
    assert verdict.comparison.why == f"the champion since {held.promoted}, evaluated anew on these items"
    assert champion_of(tmp_path / "store", "demo") == held


@pytest.mark.parametrize(
    ("harm", "says"), [("base", "belongs to another base, a/b at c"), ("files", "cannot be asked")]
)
def test_a_champion_that_cannot_be_asked_is_not_replaced_unasked(tmp_path: Path, harm: str, says: str) -> None:
    held = promoted(tmp_path, good())
    mine, result = adapter(tmp_path / "new", "new"), report(tmp_path / "new-report", good())
    if harm == "base":
        mine = mine.model_copy(update={"commit": "another"})
    else:
        (held.adapter.path / "adapter_model.safetensors").unlink()
    verdict = settled_in(tmp_path, mine, result, tokens=1)
    assert (verdict.comparison.rival, verdict.promoted) == ("base", False)
    assert says in verdict.bar
    assert verdict.bar in verdict.reason
    assert "`gradelora rollback` it" in verdict.reason
    rollback(tmp_path / "store", "demo")
    assert settled_in(tmp_path, mine, result, tokens=1).promoted


def test_an_adapter_that_was_rolled_back_does_not_come_back_by_itself(tmp_path: Path) -> None:
    mine, result = adapter(tmp_path / "new", "new"), report(tmp_path / "new-report", good())
    assert settled_in(tmp_path, mine, result).promoted
    rollback(tmp_path / "store", "demo")
    verdict = settled_in(tmp_path, mine, result)
    assert not verdict.promoted
    when = read_champions(tmp_path / "store", "demo").log[-1].when
    assert verdict.bar == f"it was rolled back at {when}; `gradelora gate --again` judges it anew"
    assert champion_of(tmp_path / "store", "demo") is None
    # Another adapter passes, and this one where it is asked for; promoted again, it is as any champion.
    assert settled_in(tmp_path, mine, result, again=True).promoted
    assert read_champions(tmp_path / "store", "demo").rolled_back(mine.digest) == ""


def test_of_two_runs_at_once_the_second_is_judged_against_the_first(tmp_path: Path) -> None:
    """Both find the old champion; the one that comes second has to beat the one that came first."""
    made = good()
    weak = [p.model_copy(update={"adapter_score": p.scores[0]}) if i % 2 else p for i, p in enumerate(made)]
    promoted(tmp_path, weak)
    other = adapter(tmp_path / "other", "other")
    asked: list[Champion] = []

    def examine(champion: Champion) -> EvalReport:
        asked.append(champion)
        if len(asked) == 1:
            # While the champion is evaluated, another run with the same scores promotes its adapter.
            seen = {"report": report(tmp_path / "other-report", made), "data_digest": "other", "reason": "better"}
            promote(tmp_path / "store", "demo", adapter=other, **seen)
        return report(tmp_path / f"examined-{len(asked)}", weak if len(asked) == 1 else made)

    mine, result = adapter(tmp_path / "new", "new"), report(tmp_path / "new-report", made)
    verdict = settled_in(tmp_path, mine, result, examine, tokens=1)
    assert [champion.adapter for champion in asked][1:] == [other]
    assert not verdict.promoted
    assert len(read_champions(tmp_path / "store", "demo").promotions) == 2


def test_the_champion_itself_stays_champion(tmp_path: Path) -> None:
    held = promoted(tmp_path, predictions(1, even(10, 14, False, False), 0.3))
    verdict = settled_in(tmp_path, held.adapter, held.report)
    assert verdict.promoted
    assert verdict.reason.startswith("already the champion since")


def test_a_split_without_items_is_refused_with_the_remedy(tmp_path: Path) -> None:
    result = report(tmp_path / "r", predictions(1, even(3, 5, False, False), 0.3))
    with pytest.raises(BadConfig, match=r"gate\.split=unseen_questions has no items; set a split"):
        judge(
            GateConfig(split="unseen_questions"),
            EVALUATION,
            adapter(tmp_path / "a", "a"),
            result,
            "d",
            Champions(),
            nobody,
        )


def test_champions_are_kept_and_rolled_back_step_by_step_to_the_base(tmp_path: Path) -> None:
    root = tmp_path / "store"
    result = report(tmp_path / "r", predictions(1, even(3, 5, False, False), 0.3))
    adapters = [adapter(tmp_path / f"a{i}", str(i)) for i in range(3)]
    assert champion_of(root, "demo") is None

    def put(i: int) -> Champion:
        return promote(root, "demo", adapter=adapters[i], report=result, data_digest="d", reason=f"why {i}")

    put(0)
    put(1)
    assert put(1).reason == "why 1"
    assert len(read_champions(root, "demo").promotions) == 2
    back = rollback(root, "demo")
    assert back is not None
    assert back.adapter == adapters[0]
    # A promotion after a step back goes back to where it came from, not to what was abandoned.
    put(2)
    back = rollback(root, "demo")
    assert back is not None
    assert back.adapter == adapters[0]
    assert rollback(root, "demo") is None
    with pytest.raises(BadConfig, match="the base is in use"):
        rollback(root, "demo")
    told = [(event.what, event.champion) for event in read_champions(root, "demo").log]
    back, up = "rolled back", "promoted"
    assert told == [(up, 0), (up, 1), (back, 0), (up, 2), (back, 0), (back, None)]
    assert champion_of(root, "other") is None


def test_a_name_cannot_leave_the_folder_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no deployment's name"):
        champion_of(tmp_path, "../demo")
    (tmp_path / "champions").mkdir()
    (tmp_path / "champions" / "demo.json").write_text("{")
    with pytest.raises(Damaged, match=r"demo\.json: is no record of champions"):
        champion_of(tmp_path, "demo")


def test_gate_and_champion_import_no_torch() -> None:
    modules = "gradelora.gate, gradelora.champion, gradelora.evaluate, gradelora.evaluate.sections"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_refused_adapter_is_kept_with_its_reason_once(tmp_path: Path) -> None:
    made = good()
    worse = [p.model_copy(update={"base_score": p.adapter_score, "adapter_score": p.base_score}) for p in made]
    mine, result = adapter(tmp_path / "a", "a"), report(tmp_path / "r", worse)
    for _ in range(2):
        verdict = settled_in(tmp_path, mine, result)
        assert not verdict.promoted
    (kept,) = read_champions(tmp_path / "store", "demo").refusals
    assert (kept.adapter, kept.reason) == (mine, verdict.reason)
    better = adapter(tmp_path / "b", "b")
    assert settled_in(tmp_path, better, report(tmp_path / "q", made)).promoted
    after = read_champions(tmp_path / "store", "demo")
    assert after.champion is not None
    assert (after.champion.adapter, after.refusals) == (better, (kept,))
    rollback(tmp_path / "store", "demo")
    assert read_champions(tmp_path / "store", "demo").refusals == (kept,)


def test_a_refusal_says_how_surely_the_expected_gain_would_have_passed() -> None:
    # The expected gain is as large as the interval reaches: the estimate has to lie above its own mean.
    verdict = decide(GateConfig(expected_gain=0.1), comparison(figure(0.05, -0.05, 0.15)))
    assert verdict.power is not None
    # 2.262 standard errors, of which c(6) = sqrt(2 / 6) Gamma(3) / Gamma(2.5) = .8686 are left: 1.965, give or
    # take sqrt(.8686^2 * 6 / 4 - 1) = 36 %.
    here, above, below = stats.nct.sf(2.262, 9, [1.965, 1.965 * 1.3629, 1.965 * 0.6371])
    assert verdict.power == pytest.approx(2 * here - (above + below) / 2, abs=0.002)
    assert verdict.reason.endswith(
        f"; a true gain of 0.100 would pass in {100 * verdict.power:.0f} % of such evaluations"
    )
    # Without any gain it is alpha.
    tiny = decide(GateConfig(expected_gain=1e-9), comparison(figure(0.05, -0.05, 0.15)))
    assert tiny.power == pytest.approx(0.025, abs=1e-3)
    sure = decide(GateConfig(expected_gain=0.1), comparison(figure(0.5, 0.49, 0.51)))
    assert sure.power == 1
    assert "would pass" not in sure.reason


def test_a_question_that_chance_makes_refuse_takes_from_the_power_and_a_group_does_not() -> None:
    noisy = part(20, figure(0.05, -0.5, 0.6))
    sure = figure(0.5, 0.49, 0.51)
    # t(.975, 19) = 2.093: a standard error of .2628; to lose .55 it must lie (.55 + .1) / .2628 below.
    one = decide(GateConfig(), comparison(sure, noisy)).power
    assert one == pytest.approx(stats.norm.cdf(0.65 / 0.2628), abs=1e-3)
    assert decide(GateConfig(), comparison(sure, noisy, noisy)).power == pytest.approx(one**2, abs=1e-3)
    # Of 60 the first must reach .1 / 60: t = 3.357 instead of 2.093, so as many refuse less often than 60 single ones.
    many = decide(GateConfig(), comparison(sure, *[noisy] * 60)).power
    assert many == pytest.approx(stats.norm.cdf(3.357 + 0.1 / 0.2628) ** 60, abs=2e-3)
    grouped = noisy.model_copy(update={"kind": "group"})
    assert decide(GateConfig(), comparison(sure, grouped)).power == 1


def test_where_one_question_outweighs_all_nothing_is_said_of_the_power() -> None:
    few = comparison(figure(0.05, -0.05, 0.15)).model_copy(update={"worth": 4.6})
    verdict = decide(GateConfig(), few)
    assert verdict.power is None
    assert "so unequal that they are worth 4.6 equal ones" in verdict.reason


@pytest.mark.parametrize("world", [even(10, 14, True, True), World((60, *(20,) * 9), 60, False, False)])
def test_the_simulation_decides_as_the_whole_gate_does(world: World) -> None:
    fast, whole = (found(3, world, 0.4, EVALUATION) for found in (judged, settled))
    assert (fast.promoted, fast.power) == (whole.promoted, pytest.approx(whole.power, abs=1e-3))
    assert (fast.tested, fast.by_chance) == (whole.tested, pytest.approx(whole.by_chance, abs=1e-3))
    assert [p.gain.low for p in fast.comparison.parts] == pytest.approx([p.gain.low for p in whole.comparison.parts])
    assert fast.comparison.gain.low == pytest.approx(whole.comparison.gain.low)
    assert fast.comparison.worth == pytest.approx(whole.comparison.worth)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world", [even(20, 20, True, True), even(20, 20, True, False), World(*ONE_LARGE, False, False)]
)
def test_equally_good_adapters_are_promoted_in_at_most_alpha(world: World) -> None:
    """One-sided 2.5 % and two standard errors of 300 runs; `bench/simulate_gate.py` makes a thousand."""
    null = [judged(run, world, BASE_NOISE, EVALUATION).promoted for run in range(300)]
    assert np.mean(null) <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.slow
def test_sixty_questions_alike_refuse_no_oftener_than_the_family_may() -> None:
    world = replace(even(60, 20, False, False), alike=True)
    found = [judged(run, world, BASE_NOISE, EVALUATION) for run in range(200)]
    assert np.mean([bool(v.losses) for v in found]) <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 200)
    seen = np.mean([len(v.losses) + len(worth_a_look(v.doubtful)) for v in found])
    assert seen == pytest.approx(np.mean([v.by_chance for v in found]), abs=0.5)
    assert seen > 0.5


@pytest.mark.slow
def test_a_real_gain_is_promoted_about_as_often_as_the_verdicts_say() -> None:
    assert true_gain(0.507, matter=True) == pytest.approx(0.1, abs=0.005)
    found = [judged(run, even(20, 20, True, True), 0.507, EVALUATION) for run in range(300)]
    said = np.mean([v.power or 0 for v in found])
    assert np.mean([v.promoted for v in found]) == pytest.approx(said, abs=0.07)
