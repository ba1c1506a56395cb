"""What only a CUDA machine can show; `make test` runs these there and says why it skips them here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gradelora.artifacts import EncodedDataset, ModelSnapshot
from gradelora.calibration import Precision, read_calibration
from gradelora.cli import main
from gradelora.config import LoraSettings, Runtime, TrainConfig
from gradelora.doctor import Finding
from gradelora.doctor.probe import ProbeRequest, compare_layer
from gradelora.hardware import gpu_bytes
from gradelora.model.adapter import attach
from gradelora.model.load import load_base
from gradelora.model.tree import TokenTree, tree_inputs
from gradelora.train import train

GPUS = len(gpu_bytes())
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="no CUDA GPU on this machine"),
]
CONFIG = TrainConfig(device="cuda", precision="bf16", answers_per_row=4, accumulation=2, epochs=2, learning_rate=5e-3)


def moved(value: Any) -> Any:
    return {k: moved(v) for k, v in value.items()} if isinstance(value, dict) else value.cuda()


def gradients(folder: Path, weights: Any) -> dict[str, torch.Tensor]:
    """Loss and every LoRA gradient of a row with two branches, computed in bf16 on a GPU."""
    model = attach(load_base(folder, weights=weights, precision="bf16", device="cuda"), LoraSettings(dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator("cuda").manual_seed(len(name)))
    tree = TokenTree()
    fork = tree.extend(-1, range(10, 40))
    tree.extend(fork, range(50, 60))
    tree.extend(fork, range(70, 90))
    inputs = moved(tree_inputs([tree], pad_id=0, model=model))
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def test_packed_experts_equal_bf16_bit_for_bit_on_cuda(snapshot: ModelSnapshot) -> None:
    packed, dense = gradients(snapshot.path, "packed"), gradients(snapshot.path, "bf16")
    assert packed.keys() == dense.keys()
    assert all(torch.equal(packed[name], dense[name]) for name in packed)


@pytest.mark.parametrize(
    "mode",
    [
        {"weights": "packed", "parallel": "zero2"},
        {"weights": "packed", "parallel": "zero2", "gradient_checkpointing": True, "expert_chunk": 2},
        {"weights": "bf16", "parallel": "zero3"},
        {"weights": "bf16", "parallel": "layers", "processes": 1},
    ],
    ids=["packed-zero2", "packed-zero2-checkpointing", "bf16-zero3", "bf16-layers"],
)
def test_every_mode_trains_on_all_gpus(
    snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, mode: dict[str, Any]
) -> None:
    config = TrainConfig.model_validate({**CONFIG.model_dump(), "processes": GPUS, **mode})
    adapter = train(config, snapshot, data, out=tmp_path, runtime=Runtime())
    assert adapter.steps > 0
    assert math.isfinite(adapter.final_loss)


def test_the_doctor_measures_these_gpus_and_plans_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor", "--gpu", "--json"])
    found = {f.check: f for f in map(Finding.model_validate, json.loads(capsys.readouterr().out))}
    # Their clocks and their disks are the machine's own affair.
    assert all(found[check].ok for check in ("layer", "all-reduce", "step memory", "training step")), found
    kept = read_calibration(tmp_path / ".gradelora" / "store", "cuda")
    assert kept is not None
    assert kept.ranks == GPUS
    assert kept.step_operations_per_s


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_expert_layer_of_the_real_shape_is_the_same_packed_and_dequantised(precision: Precision) -> None:
    with torch.device("cuda"):
        differs, compared, _ = compare_layer(
            ProbeRequest(device="cuda", precision=precision, experts=4, answer=Path("unused"))
        )
    assert not differs
    assert compared > 4 * 2880 * 3 * 2880
