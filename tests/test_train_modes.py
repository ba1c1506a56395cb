"""Every mode of training: the same bytes where it must be, and the same adapter after a kill."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import TrainConfig
from gradelora.errors import RankLost
from gradelora.train import train
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_llama
from tests.training import CONFIG, RUNTIME, SAVED_EVERY, STEPS, changed, history, progress, ranks_of, when

pytestmark = pytest.mark.slow
ONE_RANK = {"processes": 1, "accumulation": 4}


@pytest.fixture(scope="module")
def undisturbed(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return train(CONFIG, snapshot, data, out=tmp_path_factory.mktemp("undisturbed"), runtime=RUNTIME)


def test_packed_and_bf16_weights_train_the_same_adapter_on_two_ranks(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    other = train(changed(weights="bf16"), snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert history(other) == history(undisturbed)
    assert other.digest == undisturbed.digest


@pytest.mark.parametrize(
    "values",
    [ONE_RANK, {"precision": "bf16"}, ONE_RANK | {"precision": "bf16", "parallel": "layers"}],
    ids=["one-rank", "two-ranks-in-bf16", "layers-in-bf16"],
)
def test_packed_and_bf16_weights_train_the_same_adapter_in_every_mode_that_has_both(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, values: dict[str, Any]
) -> None:
    packed, dequantised = (
        train(changed(**values, weights=w, max_steps=4), snapshot, data, out=tmp_path / w, runtime=RUNTIME)
        for w in ("packed", "bf16")
    )
    assert history(packed) == history(dequantised)
    assert packed.digest == dequantised.digest
    assert history(packed)[0]["loss"] == pytest.approx(history(undisturbed)[0]["loss"], rel=0.01)


@pytest.mark.parametrize(
    "values",
    [
        {"parallel": "zero3", "weights": "bf16"},
        {"parallel": "zero3", "weights": "bf16", "precision": "bf16"},
        ONE_RANK | {"parallel": "layers"},
        {"gradient_checkpointing": True, "expert_chunk": 2, "launcher": "deepspeed"},
        {"sharing": "off", "answers_per_row": 1, "micro_batch_rows": 4, "epochs": 6, "max_steps": 12},
    ],
    ids=["zero3", "zero3-bf16", "layers", "checkpointing-deepspeed", "separate"],
)
def test_every_mode_learns_the_same(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, values: dict[str, Any]
) -> None:
    adapter = train(changed(**values), snapshot, data, out=tmp_path / "whole", runtime=RUNTIME)
    entries, wanted = history(adapter), history(undisturbed)
    assert adapter.steps == STEPS
    assert adapter.total_parameters == undisturbed.total_parameters
    if "sharing" not in values:
        # The same rows in the same steps: only dropout and rounding differ.
        assert entries[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=0.01)
    assert entries[-1]["loss"] < 0.8 * entries[0]["loss"]
    if "parallel" in values:
        assert killed_and_gone_on(changed(**values), snapshot, data, tmp_path / "killed").digest == adapter.digest


def killed_and_gone_on(config: TrainConfig, snapshot: ModelSnapshot, data: EncodedDataset, out: Path) -> Adapter:
    """SIGKILL of the last rank after step 4, then the same call again: it begins with the step after the seal."""
    killer = when(
        lambda: any(line["step"] >= 4 for line in progress(out)),
        lambda: os.kill(ranks_of(out)[-1], signal.SIGKILL),
    )
    with pytest.raises(RankLost):
        train(config, snapshot, data, out=out, runtime=RUNTIME)
    killer.join()
    before = len(progress(out))
    adapter = train(config, snapshot, data, out=out, runtime=RUNTIME)
    assert progress(out)[before]["step"] % SAVED_EVERY == 1
    assert progress(out)[before]["step"] > 1
    return adapter


def test_loss_and_gradient_do_not_depend_on_how_rows_are_spread(snapshot: ModelSnapshot, tmp_path: Path) -> None:
    """The mean is over the tokens of the whole step, also where a rank has nothing in it.

    Five rows: step 1 has four of unequal size, step 2 one, on rank 0; rank 1 has empty rows alone.
    """
    data = save_encoded(tmp_path / "data", questions=1, answers=9)
    still = {"lora": {"dropout": 0.0}, "answers_per_row": 2, "epochs": 1}
    one = ONE_RANK | {"accumulation": 1, "micro_batch_rows": 4}
    whole, zero2, zero3 = (
        train(changed(**still, **values), snapshot, data, out=tmp_path / name, runtime=RUNTIME)
        for name, values in (("one", one), ("zero2", {}), ("zero3", {"parallel": "zero3", "weights": "bf16"}))
    )
    assert whole.steps == 2
    for spread in (zero2, zero3):
        for ours, theirs in zip(history(spread), history(whole), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            assert ours.get("validation_loss") == pytest.approx(theirs.get("validation_loss"), rel=1e-4)


def test_a_dense_model_trains_on_two_ranks(data: EncodedDataset, tmp_path: Path) -> None:
    dense = snapshot_of(save_llama(tmp_path / "llama"))
    entries = history(train(changed(weights="bf16"), dense, data, out=tmp_path / "out", runtime=RUNTIME))
    assert entries[-1]["loss"] < 0.9 * entries[0]["loss"]
