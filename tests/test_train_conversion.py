"""A checkpoint of another number of processes is gone on from when it is asked for, and never else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import EncodedDataset, ModelSnapshot, sha256_file
from gradelora.config import Runtime, TrainConfig
from gradelora.errors import BadConfig
from gradelora.train import conversion, seals, train
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss
from tests.training import RUNTIME, STEPS, changed, history, job

# Without dropout the two numbers of processes differ in rounding alone.
TWO: dict[str, Any] = {"lora": {"dropout": 0.0}, "learning_rate": 1e-3, "keep_checkpoints": 4}
ONE = TWO | {"processes": 1, "accumulation": 4}


@pytest.fixture
def data(tmp_path: Path) -> EncodedDataset:
    return save_encoded(tmp_path / "data", questions=1, answers=2)


def sealed(tmp_path: Path, data: EncodedDataset, config: TrainConfig) -> Path:
    folder = seals.folder_of(tmp_path / "theirs" / seals.FOLDER, 6)
    folder.mkdir(parents=True)
    (folder / seals.TRAINER_STATE).write_text('{"log_history": []}')
    origin = job(tmp_path, data, config=config).origin
    seals.seal(folder, step=6, world_size=config.processes, identity=origin.identity, origin=origin)
    return folder


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"accumulation": 2}, r"rows a step \(4, now 2"),
        ({"accumulation": 4, "learning_rate": 2e-4}, r"train.learning_rate \(0.005, now 0.0002\)"),
        ({"accumulation": 4, "parallel": "layers"}, "parallel"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_what_differs(
    tmp_path: Path, data: EncodedDataset, values: dict[str, Any], why: str
) -> None:
    folder = sealed(tmp_path, data, changed())
    config = changed(processes=1, start_from=sha256_file(folder / seals.MANIFEST), **values)
    with pytest.raises(BadConfig, match=why):
        conversion.start(job(tmp_path, data, config=config), folder, {})


def test_a_checkpoint_is_named_by_its_contents_and_must_be_whole(tmp_path: Path, data: EncodedDataset) -> None:
    folder = sealed(tmp_path, data, changed())
    config = changed(processes=1, accumulation=4, start_from=sha256_file(folder / seals.MANIFEST))
    this = job(tmp_path, data, config=config)
    with pytest.raises(BadConfig, match=r"runtime\.start_checkpoint"):
        conversion.start(this, None, {})
    other = job(tmp_path, data, config=changed(processes=1, accumulation=4, start_from="0" * 64))
    with pytest.raises(BadConfig, match="is not the checkpoint"):
        conversion.start(other, folder, {})
    (folder / seals.TRAINER_STATE).write_text("{}")
    with pytest.raises(BadConfig, match=r"trainer_state.json holds 2 bytes.*older checkpoint"):
        conversion.start(this, folder, {})


@pytest.mark.slow
def test_two_processes_checkpoint_goes_on_with_one_close_to_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot: ModelSnapshot = snapshot_of(save_gpt_oss(tmp_path / "gpt-oss"))
    data = save_encoded(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("gradelora.train.shutil.rmtree", lambda *_, **__: None)
        two = train(changed(**TWO), snapshot, data, out=tmp_path / "two", runtime=RUNTIME)
    checkpoint = tmp_path / "two" / seals.FOLDER / "step-6"
    config = changed(**ONE, start_from=sha256_file(checkpoint / seals.MANIFEST))
    runtime = Runtime(threads=1, start_checkpoint=checkpoint)
    one = train(config, snapshot, data, out=tmp_path / "one", runtime=runtime)
    shutil.rmtree(tmp_path / "two" / seals.FOLDER)
    assert one.steps == STEPS
    assert history(one)[5]["converted"] == "sealed by 2 processes, went on with 1: equal up to rounding"
    for ours, theirs in zip(history(one), history(two), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert history(one)[:5] == history(two)[:5]
