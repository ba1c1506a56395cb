"""The gate's verdicts, and the pointer to the champion."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.simulate_gate import BASE_NOISE, World, evaluated, predictions, settled, true_gain
from gradelora.artifacts import Adapter, EvalReport, Interval
from gradelora.champion import Champion, champion_of, promote, read_champions, rollback
from gradelora.config import EvaluateConfig, GateConfig
from gradelora.errors import BadConfig, Damaged
from gradelora.evaluate.predictions import FILE, Prediction
from gradelora.gate import Comparison, PartGain, decide, judge, power, settle

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
        students=0,
        confidence_level=0.95,
        rival_qwk=figure(0.25),
        adapter_qwk=figure(0.75),
        gain=gain,
        parts=parts,
    )


def part(items: int, gain: Interval) -> PartGain:
    return PartGain(kind="question", name="q7", items=items, gain=gain)


def test_a_lower_end_above_the_margin_promotes_with_figures() -> None:
    verdict = decide(GateConfig(), comparison(figure(0.5, 0.38, 0.62)))
    assert verdict.promoted
    assert verdict.reason == (
        "promoted on unseen_answers (140 items, 10 questions): QWK 0.750 against the base's 0.250; gain 0.500, "
        "95 % interval 0.380 to 0.620, above the margin 0.000; no question or group is shown to lose more than 0.300"
    )


@pytest.mark.parametrize(("low", "margin"), [(0.0, 0.0), (-0.01, 0.0), (0.38, 0.4)])
def test_a_lower_end_at_or_below_the_margin_refuses(low: float, margin: float) -> None:
    verdict = decide(GateConfig(margin=margin), comparison(figure(0.5, low, 0.62)))
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


def adapter(folder: Path, content: str) -> Adapter:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 1.0}
    return Adapter.collect(folder, repo_id="a/b", commit="c", **facts)


def report(folder: Path, made: list[Prediction]) -> EvalReport:
    return evaluated(folder, made, EVALUATION)


def good() -> list[Prediction]:
    """An adapter that agrees well beside a base that gives every answer 0."""
    made = predictions(1, World(10, 14, False, False), 0.3)
    return [p.model_copy(update={"base_score": 0.0}) for p in made]


def champion(tmp_path: Path, made: list[Prediction], data_digest: str = "d") -> Champion:
    return promote(
        tmp_path / "store",
        "demo",
        adapter=adapter(tmp_path / "old", "old"),
        report=report(tmp_path / "old-report", made),
        data_digest=data_digest,
        reason="better than the base",
    )


def test_the_rival_is_the_champion_on_the_same_items_paired(tmp_path: Path) -> None:
    made = good()
    held = champion(tmp_path, made)
    # The new adapter scores as the champion, but for one item in ten: better than the base, no better than it.
    new = [p.model_copy(update={"adapter_score": p.scores[0]}) if i % 10 == 0 else p for i, p in enumerate(made)]
    mine = adapter(tmp_path / "new", "new")
    verdict = judge(GateConfig(), EVALUATION, mine, report(tmp_path / "new-report", new), "d", held)
    assert verdict.comparison.rival == "champion"
    assert not verdict.promoted
    assert "against the champion's" in verdict.reason
    assert judge(GateConfig(), EVALUATION, mine, report(tmp_path / "again", new), "d", None).promoted


def test_other_data_or_lost_predictions_compare_with_the_base_and_say_so(tmp_path: Path) -> None:
    made = good()
    held = champion(tmp_path, made)
    mine, result = adapter(tmp_path / "new", "new"), report(tmp_path / "new-report", made)
    verdict = judge(GateConfig(), EVALUATION, mine, result, "other", held)
    assert (verdict.comparison.rival, verdict.promoted) == ("base", True)
    assert "evaluated on other data" in verdict.comparison.why
    (held.report.path / FILE).unlink()
    verdict = judge(GateConfig(), EVALUATION, mine, result, "d", held)
    assert "gone from the store" in verdict.comparison.why


def test_the_champion_itself_stays_champion(tmp_path: Path) -> None:
    held = champion(tmp_path, predictions(1, World(10, 14, False, False), 0.3))
    verdict = judge(GateConfig(), EVALUATION, held.adapter, held.report, "d", held)
    assert verdict.promoted
    assert verdict.reason.startswith("already the champion since")


def test_a_split_without_items_is_refused_with_the_remedy(tmp_path: Path) -> None:
    result = report(tmp_path / "r", predictions(1, World(3, 5, False, False), 0.3))
    with pytest.raises(BadConfig, match=r"gate\.split=unseen_questions has no items; set a split"):
        judge(GateConfig(split="unseen_questions"), EVALUATION, adapter(tmp_path / "a", "a"), result, "d", None)


def test_champions_are_kept_and_rolled_back_step_by_step_to_the_base(tmp_path: Path) -> None:
    root = tmp_path / "store"
    result = report(tmp_path / "r", predictions(1, World(3, 5, False, False), 0.3))
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
        verdict = settle(tmp_path / "store", "demo", GateConfig(), EVALUATION, mine, result, "d")
        assert not verdict.promoted
    (kept,) = read_champions(tmp_path / "store", "demo").refusals
    assert (kept.adapter, kept.reason) == (mine, verdict.reason)
    better = adapter(tmp_path / "b", "b")
    assert settle(
        tmp_path / "store", "demo", GateConfig(), EVALUATION, better, report(tmp_path / "q", made), "d"
    ).promoted
    after = read_champions(tmp_path / "store", "demo")
    assert after.champion is not None
    assert (after.champion.adapter, after.refusals) == (better, (kept,))
    rollback(tmp_path / "store", "demo")
    assert read_champions(tmp_path / "store", "demo").refusals == (kept,)


def test_a_refusal_says_how_surely_the_expected_gain_would_have_been_shown() -> None:
    # The expected gain is as large as the interval reaches: the estimate has to lie above its own mean.
    verdict = decide(GateConfig(expected_gain=0.1), comparison(figure(0.05, -0.05, 0.15)))
    assert verdict.power == pytest.approx(0.5, abs=0.05)
    assert verdict.reason.endswith(
        f"; a true gain of 0.100 would be shown in {100 * verdict.power:.0f} % of such evaluations"
    )
    # Without any gain it is alpha.
    tiny = decide(GateConfig(expected_gain=1e-9), comparison(figure(0.05, -0.05, 0.15)))
    assert tiny.power == pytest.approx(0.025, abs=1e-3)
    sure = decide(GateConfig(expected_gain=0.1), comparison(figure(0.5, 0.49, 0.51)))
    assert sure.power == 1
    assert "would be shown" not in sure.reason


@pytest.mark.slow
@pytest.mark.parametrize("students", [False, True])
def test_equally_good_adapters_are_promoted_in_at_most_alpha(students: bool) -> None:
    """One-sided 2.5 % and two standard errors of 60 runs; `bench/simulate_gate.py` makes a thousand."""
    world = World(10, 14, students, students)
    null = [settled(run, world, BASE_NOISE, 200).promoted for run in range(60)]
    assert np.mean(null) <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / 60)


@pytest.mark.slow
def test_a_real_gain_is_promoted_about_as_often_as_the_verdicts_say() -> None:
    assert true_gain(0.3, matter=True) == pytest.approx(0.138, abs=0.005)
    found = [settled(run, World(20, 20, True, True), 0.3, 200) for run in range(40)]
    promoted = np.mean([v.promoted for v in found])
    said = np.mean([power(GateConfig(expected_gain=0.138), v.comparison) for v in found])
    assert promoted == pytest.approx(said, abs=2 * np.sqrt(said * (1 - said) / 40))
