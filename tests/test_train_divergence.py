"""A loss that is no number ends training with what to do, and is never sealed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gradelora.errors import TrainingDiverged, Transient
from gradelora.rows import Items, schedule_of
from gradelora.train import train
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss
from tests.training import CONFIG, RUNTIME, changed, progress

LOG = [
    {"step": 3, "loss": 2.5, "grad_norm": 0.75},
    {"step": 3, "eval_loss": 2.4},
    {"step": 4, "loss": 2.25, "grad_norm": float("inf")},
]


def told(log: list[dict[str, Any]], checkpoints: Path) -> str:
    """What is raised when the last entry of the log arrives."""
    from gradelora.train.divergence import Divergence

    state: Any = SimpleNamespace(global_step=log[-1]["step"], max_steps=12, log_history=log)
    with pytest.raises(TrainingDiverged) as caught:
        Divergence(CONFIG, checkpoints).on_log(None, state, None, logs=log[-1])  # type: ignore[arg-type]
    return str(caught.value)


def test_a_gradient_that_is_no_number_ends_training_before_the_weights_are_sealed(tmp_path: Path) -> None:
    said = told(LOG, tmp_path)
    assert said.startswith("step 4 of 12: gradient norm inf; ")
    assert "the last finite ones were loss 2.5 and gradient norm 0.75 at step 3" in said
    assert "train.learning_rate (now 0.005)" in said
    assert said.endswith("no checkpoint was sealed before it")
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "manifest.json").write_text("{}")
    (tmp_path / "step-4").mkdir()
    assert "the checkpoint of step 3 is kept" in told(LOG, tmp_path)
    assert "no step before it was finite" in told([{"step": 1, "loss": float("nan"), "grad_norm": 1.0}], tmp_path)
    assert "validation loss nan" in told([*LOG[:1], {"step": 3, "eval_loss": float("nan")}], tmp_path)
    assert not issubclass(TrainingDiverged, Transient), "the same settings would end there again"


@pytest.mark.slow
def test_ranks_whose_loss_becomes_nan_tell_step_and_remedy_and_keep_what_was_sealed(tmp_path: Path) -> None:
    data = save_encoded(tmp_path / "data")
    config = changed(save_every=0.01)
    items = Items.read(data.path / "train")
    seen = [
        {token for micro in step for rank in micro for row in rank for item in row for token in items.tokens(item)}
        for step in schedule_of(config, items).rows
    ]
    # A word whose embedding is no number, first met at some step after the first.
    fatal = min(min(i for i, step in enumerate(seen) if token in step) * 1000 + token for token in seen[2] - seen[0])
    step, token = fatal // 1000 + 1, fatal % 1000
    model = save_gpt_oss(tmp_path / "model")
    name = "model.embed_tokens.weight"
    shard = model / json.loads((model / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][token] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})

    with pytest.raises(TrainingDiverged, match=f"step {step} of 12: loss nan") as caught:
        train(config, snapshot_of(model), data, out=tmp_path / "out", runtime=RUNTIME)
    before = next(entry for entry in progress(tmp_path / "out") if entry["step"] == step - 1 and "loss" in entry)
    assert f"the last finite ones were loss {before['loss']:.4g}" in str(caught.value)
    assert f"the checkpoint of step {step - 1} is kept" in str(caught.value)
    assert (tmp_path / "out" / "checkpoints" / f"step-{step - 1}" / "manifest.json").exists()
    assert not (tmp_path / "out" / "checkpoints" / f"step-{step}").exists()
