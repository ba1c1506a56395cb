"""Training's figures reach the services that are configured, as one curve over all attempts."""

from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import EncodedDataset
from gradelora.config import Runtime
from gradelora.errors import MissingTool
from gradelora.train import train
from gradelora.train.tracking import TRACKERS, Trackers
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import CONFIG, curves, job


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    return save_encoded(tmp_path_factory.mktemp("data"), questions=1, answers=2)


def test_a_package_that_is_missing_is_named_before_anything_starts(
    tmp_path: Path, data: EncodedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradelora.trackers.importlib.util.find_spec", lambda _: None)
    runtime = Runtime(report_to=("wandb", "mlflow"))
    with pytest.raises(MissingTool, match="pip install wandb mlflow-skinny"):
        train(CONFIG, snapshot_of(tmp_path / "model"), data, out=tmp_path / "out", runtime=runtime)
    assert not (tmp_path / "out").exists()


def test_steps_that_are_trained_again_after_a_kill_are_shown_once(tmp_path: Path, data: EncodedDataset) -> None:
    this = job(tmp_path, data, report_to=("tensorboard",))
    for first, last in ((0, 5), (3, 6), (6, 8)):
        trackers = Trackers(this)
        trackers.begin(first)
        for step in range(first + 1, last + 1):
            trackers.log(step, {"loss": 1 / step, "tokens_per_s": 10.0 + first})
        if first:
            trackers.end()
    shown = curves(tmp_path)
    assert [step for step, _ in shown["loss"]] == list(range(1, 9))
    assert [value for _, value in shown["tokens_per_s"]] == [10] * 3 + [13] * 3 + [16] * 2


class Failing:
    """A client whose service is down."""

    def __init__(self, *_: Any) -> None: ...

    def log(self, *_: Any) -> None:
        raise ConnectionError("no route to host")

    def close(self) -> None: ...


def test_a_service_that_cannot_be_reached_does_not_end_training(
    tmp_path: Path, data: EncodedDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Failing)
    trackers = Trackers(job(tmp_path, data, report_to=("wandb", "tensorboard")))
    trackers.begin(0)
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 0.5})
    trackers.end()
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]
    said = capsys.readouterr().out
    assert said.count("wandb is not reported to any more: ConnectionError: no route to host") == 1
