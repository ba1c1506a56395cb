"""The adapter of the best evaluation comes out, also where training was cut off around it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.errors import BadConfig, RankLost
from gradelora.train import train
from gradelora.train.choice import Choice
from gradelora.train.judge import quadratic_weighted_kappa
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import RUNTIME, changed, history, progress, ranks_of, when

# A learning rate that overshoots: the validation loss falls, and rises again before the end.
OVERSHOOTS: dict[str, Any] = {"learning_rate": 0.05, "schedule": "constant", "evaluate_every": 1 / 12, "epochs": 4}


def log(*losses: float) -> list[dict[str, float]]:
    return [{"step": 3 * (i + 1), "eval_loss": loss, "eval_qwk": -loss} for i, loss in enumerate(losses)]


@pytest.mark.parametrize("best", ["validation_loss", "validation_qwk"])
def test_the_best_evaluation_is_chosen_and_the_first_of_equals(best: Any) -> None:
    standing = Choice(best, None).standing(log(0.5, 0.2, 0.2, float("nan"), 0.4))
    assert standing is not None
    assert (standing.step, standing.evaluations, standing.since) == (6, 5, 3)
    assert Choice("last", None).standing(log(0.5)) is None


def test_training_ends_after_as_many_evaluations_without_a_better_one_as_patience_says() -> None:
    choice = Choice("validation_loss", 2)
    assert not choice.exhausted(log(0.5, 0.2, 0.3))
    assert choice.exhausted(log(0.5, 0.2, 0.3, 0.2))
    assert not choice.exhausted(log(0.5, 0.2, 0.3, 0.1))
    assert not choice.exhausted([])
    notes = choice.notes(log(0.5, 0.2, 0.3, 0.2), steps=12, planned=30)
    assert notes[6] == {"chosen": "the lowest validation_loss of 4 evaluations"}
    assert notes[12] == {"stopped": "2 evaluations without a better validation_loss, after step 12 of 30"}


def test_qwk_of_training_is_that_of_the_evaluation() -> None:
    import numpy as np

    from gradelora.evaluate.agreement import moments, qwk

    pairs = [(0.0, 1.0), (1.0, 1.0), (2.5, 2.0), (3.0, 1.0), (2.0, 3.0), (0.0, 0.5)]
    human, scored = (np.array(side) for side in zip(*pairs, strict=True))
    wanted = float(qwk(moments(human, scored, np.ones_like(human)).sum(0)))
    assert quadratic_weighted_kappa(pairs) == pytest.approx(wanted, abs=1e-6)


def test_best_without_validation_items_is_refused_before_anything_starts(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path / "model")
    data = save_encoded(tmp_path / "data", validation=0)
    with pytest.raises(BadConfig, match=r"no validation item.*validation_share"):
        train(changed(best="validation_loss"), snapshot, data, out=tmp_path / "out", runtime=RUNTIME)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"patience": 2}, "best=validation_loss"),
        ({"best": "validation_qwk", "parallel": "zero3", "weights": "bf16"}, "parallel=zero2"),
    ],
)
def test_settings_that_cannot_choose_are_refused_with_the_remedy(values: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        changed(**values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    return save_encoded(tmp_path_factory.mktemp("data"), validation=3)


@pytest.fixture(scope="module")
def stopped(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """A run on two ranks that stops two evaluations after its best QWK."""
    config = changed(best="validation_qwk", patience=2, **OVERSHOOTS)
    return train(config, snapshot, data, out=tmp_path_factory.mktemp("stopped"), runtime=RUNTIME)


@pytest.mark.slow
def test_the_best_adapter_comes_out_and_history_says_which_and_why_training_stopped(stopped: Adapter) -> None:
    entries = history(stopped)
    qwks = {e["step"]: e["validation_qwk"] for e in entries}
    best = max(qwks.values())
    assert stopped.chosen_step == next(step for step, qwk in qwks.items() if qwk == best)
    assert stopped.steps == stopped.chosen_step + 2 < 12
    assert "highest validation_qwk" in entries[stopped.chosen_step - 1]["chosen"]
    assert "2 evaluations without a better validation_qwk" in entries[-1]["stopped"]


@pytest.mark.slow
def test_a_run_killed_around_its_best_evaluation_chooses_the_same_adapter(
    stopped: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the stop, then cut off after it: the best adapter lies in the checkpoint, the log decides."""
    config = changed(best="validation_qwk", patience=2, **OVERSHOOTS)
    sealed = tmp_path / "checkpoints" / "step-3" / "manifest.json"
    killer = when(sealed.exists, lambda: os.kill(ranks_of(tmp_path)[-1], signal.SIGKILL))
    with pytest.raises(RankLost):
        train(config, snapshot, data, out=tmp_path, runtime=RUNTIME)
    killer.join()
    with monkeypatch.context() as patch:
        patch.setattr("gradelora.train.shutil.rmtree", lambda *_, **__: None)
        resumed = train(config, snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert "chosen" in history(resumed)[stopped.chosen_step - 1]
    lines = len(progress(tmp_path))
    (tmp_path / "adapter_model.safetensors").unlink()
    again = train(config, snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert again.digest == stopped.digest
    assert len(progress(tmp_path)) == lines
