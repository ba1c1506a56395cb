"""Training stops sealed where its hours or its money end, and goes on to the same adapter."""

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradelora.artifacts import EncodedDataset
from gradelora.config import Runtime
from gradelora.errors import BudgetReached
from gradelora.train import train
from gradelora.train.ledger import Ledger
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import CONFIG, job


@pytest.fixture
def data(tmp_path: Path) -> EncodedDataset:
    return save_encoded(tmp_path / "data", questions=1, answers=2)


def test_the_time_of_killed_attempts_is_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.spent_s() == 0
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), ledger.running():
            time.sleep(0.05)
            raise KeyboardInterrupt
    assert 0.1 <= ledger.spent_s() < 5
    (ledger.folder / "0003.json").write_text("")
    assert 0.1 <= ledger.spent_s() < 5


def test_a_budget_that_is_used_up_is_told_before_anything_starts(tmp_path: Path, data: EncodedDataset) -> None:
    out = tmp_path / "out"
    folder = Ledger(out).folder
    folder.mkdir(parents=True)
    (folder / "0001.json").write_text('{"seconds": 7200}')
    runtime = Runtime(price_per_hour=4, budget_cost=6)
    with pytest.raises(BudgetReached, match=r"2 of 1.5 hours .* raise runtime.budget_cost and run again"):
        train(CONFIG, snapshot_of(tmp_path / "model"), data, out=out, runtime=runtime)
    assert not (out / "aside" / "job.json").exists()


def test_the_smaller_of_two_budgets_holds_and_money_needs_a_price() -> None:
    assert Runtime(price_per_hour=4, budget_cost=6, budget_hours=2).budget_s == 1.5 * 3600
    assert Runtime(price_per_hour=4, budget_cost=6, budget_hours=1).budget_s == 3600
    assert Runtime(price_per_hour=4).budget_s is None
    with pytest.raises(ValueError, match="price_per_hour"):
        Runtime(budget_cost=6)


def after_a_step(budget: Any, step: int, *, evaluates: bool = False) -> tuple[bool, bool]:
    """Whether the callback asks to stop, and to save, when `step` has ended; `evaluates`: its evaluation is due."""
    control = SimpleNamespace(should_evaluate=evaluates, should_save=False, should_training_stop=False)
    budget.on_step_end(None, SimpleNamespace(global_step=step, max_steps=12, eval_steps=3), control)
    return control.should_training_stop, control.should_save


def test_training_stops_at_the_last_step_that_fits_with_its_seal_and_its_evaluation(
    tmp_path: Path, data: EncodedDataset
) -> None:
    from gradelora.train.budget import Budget, Pace

    budget = Budget(job(tmp_path, data, spent_s=60), 100)
    budget.pace = Pace(step=10, evaluation=25, seal=10)
    budget.on_step_begin()
    assert after_a_step(budget, 1) == (False, False)
    assert after_a_step(budget, 2) == (True, True), "step 3 evaluates, and 60 + 45 s are more than 100"
    assert "step 2 of 12 is sealed" in str(budget.reached)
    assert after_a_step(budget, 12) == (False, False)


def asked_of(callback: Any, step: int) -> tuple[bool, bool]:
    """Whether it asks to stop, and to save."""
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=12), control)
    return control.should_training_stop, control.should_save


def test_a_training_that_went_on_for_long_without_a_seal_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradelora.train.stop import Stop

    now = [1000.0]
    monkeypatch.setattr("gradelora.train.stop.time.monotonic", lambda: now[0])
    callback = Stop(tmp_path / "stop", seal_every_s=900)
    callback.on_train_begin()
    now[0] += 899
    assert asked_of(callback, 1) == (False, False)
    now[0] += 2
    assert asked_of(callback, 2) == (False, True)
    callback.on_save()
    assert asked_of(callback, 3) == (False, False)


def test_a_training_that_is_told_to_stop_does_so_sealed_unless_it_is_at_its_end(tmp_path: Path) -> None:
    from gradelora.train.stop import Stop

    callback = Stop(tmp_path / "stop", seal_every_s=900)
    assert asked_of(callback, 1) == (False, False)
    (tmp_path / "stop").touch()
    assert asked_of(callback, 12) == (False, False)
    assert callback.reached is None
    assert asked_of(callback, 2) == (True, True)
    assert "step 2 of 12 is sealed" in str(callback.reached)


def test_the_evaluation_that_is_still_due_counts_before_another_step_begins(
    tmp_path: Path, data: EncodedDataset
) -> None:
    from gradelora.train.budget import Budget, Pace

    budget = Budget(job(tmp_path, data, spent_s=60), 100)
    budget.pace = Pace(step=10, evaluation=25, seal=10)
    budget.on_step_begin()
    assert after_a_step(budget, 3) == (False, False)
    assert after_a_step(budget, 3, evaluates=True) == (True, True), "60 + 25 s, and 20 for step 4"


def test_the_pace_outlives_an_attempt_so_that_its_first_step_is_not_one_too_many(
    tmp_path: Path, data: EncodedDataset
) -> None:
    from gradelora.train.budget import Budget, Pace

    state: Any = SimpleNamespace(global_step=3, max_steps=12, eval_steps=3, is_world_process_zero=True)
    first = Budget(job(tmp_path, data), 100)
    (tmp_path / "aside").mkdir()
    first.pace = Pace(step=10, evaluation=25, seal=10)
    first.on_save(None, state)  # type: ignore[arg-type]
    Budget(job(tmp_path, data, spent_s=70), 100).on_train_begin(None, state)  # type: ignore[arg-type]
    with pytest.raises(BudgetReached, match=r"step 3 of 12 is sealed"):
        Budget(job(tmp_path, data, spent_s=85), 100).on_train_begin(None, state)  # type: ignore[arg-type]
