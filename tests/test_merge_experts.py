"""LoRA on expert weights, merged: in bf16 as PEFT does, into MXFP4 with the loss measured, or refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gradelora.errors import KeyMismatch, MergeDiffers, UnsupportedModel
from gradelora.merge.checkpoint import read_checkpoint
from gradelora.model.mxfp4 import dequantize, quantize, requantize
from tests.merging import QKVO, dequantized, peft_merged, run, save_adapter, save_gpt_oss, tensors

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SETTINGS = {
    "attention too": {"target_modules": QKVO, "target_parameters": EXPERTS},
    "experts alone": {"target_modules": [], "target_parameters": EXPERTS[::-1]},
    "one of the two": {"target_modules": [], "target_parameters": EXPERTS[1:]},
    "rslora": {"target_modules": [], "target_parameters": EXPERTS, "use_rslora": True},
    "patterns": {
        "target_parameters": EXPERTS,
        "rank_pattern": {"layers.1.mlp.experts.down_proj": 4},
        "alpha_pattern": {"experts.gate_up_proj": 3},
    },
}


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt_oss(tmp_path_factory.mktemp("gpt_oss") / "base")


@pytest.fixture(scope="module")
def experts(gpt_oss: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(gpt_oss, tmp_path_factory.mktemp("experts"), **SETTINGS["attention too"])


def survivals(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "delta_survival.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "kind", [k if k == "attention too" else pytest.param(k, marks=pytest.mark.slow) for k in SETTINGS]
)
def test_in_bf16_the_experts_equal_pefts_bit_for_bit(gpt_oss: Path, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(gpt_oss, tmp_path / "adapter", **SETTINGS[kind])
    result = run(gpt_oss, adapter, tmp_path / "out", dtype="bf16")
    theirs = peft_merged(gpt_oss, adapter)
    ours = tensors(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert result.least_delta_survival is None
    before = dequantized(gpt_oss).state_dict()
    assert not torch.equal(ours["model.layers.0.mlp.experts.down_proj"], before["model.layers.0.mlp.experts.down_proj"])


def test_what_bf16_writes_is_a_checkpoint_of_its_own_that_loads_whole(
    gpt_oss: Path, experts: Path, tmp_path: Path
) -> None:
    result = run(gpt_oss, experts, tmp_path / "out", dtype="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(tmp_path / "out").values())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "out"))
    assert (result.dtype, result.merged_tensors) == ("bf16", 8 + 4)


@pytest.mark.slow
def test_experts_that_are_bf16_already_are_merged_in_place(gpt_oss: Path, experts: Path, tmp_path: Path) -> None:
    attention = save_adapter(gpt_oss, tmp_path / "attention")
    run(gpt_oss, attention, tmp_path / "bf16", dtype="bf16")
    run(tmp_path / "bf16", experts, tmp_path / "out")
    theirs = peft_merged(tmp_path / "bf16", experts)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(tmp_path / "out").items())


def test_a_sum_that_mxfp4_cannot_hold_is_refused_unless_a_loss_is_accepted(
    gpt_oss: Path, experts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=r"4 bits.*merge\.dtype=bf16.*merge\.min_delta_survival"):
        run(gpt_oss, experts, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    assert run(gpt_oss, experts, tmp_path / "out", min_delta_survival=-1).least_delta_survival is not None


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_rounded_experts_are_the_nearest_to_the_sum_and_their_loss_is_what_is_told(tmp_path: Path, shards: int) -> None:
    """Three shards hold blocks and scales of one weight apart from each other."""
    base = save_gpt_oss(tmp_path / "base", shards=shards)
    adapter = save_adapter(base, tmp_path / "adapter", **SETTINGS["experts alone"])
    result = run(base, adapter, tmp_path / "out", min_delta_survival=-1)
    factors, stored = load_file(adapter / "adapter_model.safetensors"), tensors(tmp_path / "out")
    told = {(one["parameter"], one["expert"]): one for one in survivals(tmp_path / "out")}
    before = {name: tensor.float() for name, tensor in dequantized(base).state_dict().items()}
    for name, wrapper in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        for layer in range(2):
            parameter, at = f"model.layers.{layer}.mlp.experts.{name}", f"base_model.model.model.layers.{layer}.mlp"
            lora_a = factors[f"{at}.experts{wrapper}.lora_A.weight"].reshape(4, 8, -1)
            lora_b = factors[f"{at}.experts{wrapper}.lora_B.weight"]
            update = 4 * torch.einsum("ore,eri->eio", lora_b.reshape(len(lora_b), 8, 4), lora_a)
            blocks, scales = requantize(before[parameter] + update)
            assert torch.equal(stored[f"{parameter}_blocks"], blocks)
            assert torch.equal(stored[f"{parameter}_scales"], scales)
            change = dequantize(blocks, scales, torch.float32) - before[parameter]
            rounded_up = dequantize(*quantize(before[parameter] + update), torch.float32) - before[parameter]
            assert (change - update).norm() < (rounded_up - update).norm()
            for expert in range(4):
                one, size = told.pop((parameter, expert)), update[expert].norm()
                assert one["delta_norm"] == pytest.approx(float(size), abs=1e-3)
                lost = (change[expert] - update[expert]).norm() / size
                assert one["survival"] == pytest.approx(1 - float(lost), abs=1e-3)
                along = (change[expert] * update[expert]).sum() / size**2
                assert one["projection"] == pytest.approx(float(along), abs=1e-3)
    assert not told
    assert result.least_delta_survival == min(one["survival"] for one in survivals(tmp_path / "out"))
    assert not math.isnan(float(dequantized(tmp_path / "out")(torch.arange(20).unsqueeze(0)).logits.sum()))


def test_an_update_below_the_floor_is_no_model_and_says_by_how_much(gpt_oss: Path, tmp_path: Path) -> None:
    """Half a step of a 4-bit weight is a tenth of it and more: an update of a thousandth moves nothing."""
    adapter = save_adapter(gpt_oss, tmp_path / "adapter", **SETTINGS["experts alone"], lora_alpha=1e-4)
    with pytest.raises(MergeDiffers, match=r"16 of 16 expert matrices .*0\.0000 survives, 0\.0000 along"):
        run(gpt_oss, adapter, tmp_path / "out", min_delta_survival=0.2)
    assert not (tmp_path / "out" / "config.json").exists()
    result = run(gpt_oss, adapter, tmp_path / "out", min_delta_survival=0)
    assert result.least_delta_survival == 0
    # Nothing survived and nothing else was lost: the experts are the base's.
    before, after = dequantized(gpt_oss).state_dict(), dequantized(tmp_path / "out").state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.slow
def test_a_resumed_merge_still_knows_what_survived(gpt_oss: Path, experts: Path, tmp_path: Path) -> None:
    first = run(gpt_oss, experts, tmp_path / "out", min_delta_survival=-1)
    told = (tmp_path / "out" / "delta_survival.jsonl").read_bytes()
    for name in ("delta_survival.jsonl", read_checkpoint(gpt_oss)[1].name):
        (tmp_path / "out" / name).unlink()
    assert run(gpt_oss, experts, tmp_path / "out", min_delta_survival=-1).digest == first.digest
    assert (tmp_path / "out" / "delta_survival.jsonl").read_bytes() == told


@pytest.mark.slow
def test_shards_in_another_format_are_not_taken_for_sealed(gpt_oss: Path, experts: Path, tmp_path: Path) -> None:
    run(gpt_oss, experts, tmp_path / "out", min_delta_survival=-1)
    expected = run(gpt_oss, experts, tmp_path / "clean", dtype="bf16")
    assert run(gpt_oss, experts, tmp_path / "out", dtype="bf16").digest == expected.digest


def test_factors_of_another_shape_or_without_a_weight_are_an_error(
    gpt_oss: Path, experts: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(experts, tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    at = "base_model.model.model.layers.0.mlp.experts"
    save_file(held | {f"{at}.lora_B.weight": torch.zeros(64, 8)}, adapter / "adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match=r"down_proj: the adapter's shapes"):
        run(gpt_oss, adapter, tmp_path / "out", dtype="bf16")
    save_file({n: t for n, t in held.items() if ".base_layer." not in n}, adapter / "adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match="gate_up_proj"):
        run(gpt_oss, adapter, tmp_path / "out", dtype="bf16")
