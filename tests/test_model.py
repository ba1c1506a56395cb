"""Loading: packed experts compute what dequantised ones compute, and no key is ever lost in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config, set_seed

from gradelora.config import EvaluateConfig, LoraSettings, MergeStageConfig, TrainConfig
from gradelora.errors import BadConfig, KeyMismatch, NotEnoughMemory, UnsupportedModel
from gradelora.evaluate import evaluate
from gradelora.merge import merge
from gradelora.model import load, packed
from gradelora.model.adapter import attach, load_adapter, lora_config, parameter_counts
from gradelora.model.load import load_base
from gradelora.model.tree import TokenTree, tree_inputs
from gradelora.preflight.size import lora_matrices, size_of
from gradelora.train import train
from tests.described import gpt_oss as gpt_oss_120b
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss, save_llama
from tests.training import RUNTIME, changed, history


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt_oss(tmp_path_factory.mktemp("gpt-oss"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def with_adapter(folder: Path, weights: Any, precision: Any, **options: Any) -> Any:
    model = load_base(folder, weights=weights, precision=precision, device="cpu", **options)
    set_seed(0)
    model = attach(model, LoraSettings(dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def computed(model: Any) -> dict[str, torch.Tensor]:
    """Loss, logits and every LoRA gradient of a row with two branches."""
    tree = TokenTree()
    fork = tree.extend(-1, range(10, 40))
    tree.extend(fork, range(50, 60))
    tree.extend(fork, range(70, 90))
    inputs = tree_inputs([tree], pad_id=0, model=model)
    found = model(**inputs, labels=inputs["input_ids"])
    found.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 16
    return {"loss": found.loss.detach(), "logits": found.logits.detach(), **gradients}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_packed_equals_bf16_bit_for_bit(gpt_oss: Path, precision: str, chunk: int) -> None:
    one = computed(with_adapter(gpt_oss, "packed", precision, expert_chunk=chunk))
    assert same(one, computed(with_adapter(gpt_oss, "bf16", precision)))


def test_packed_experts_with_swapped_nibbles_are_noticed(gpt_oss: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gpt_oss, tmp_path / "swapped"))
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        swapped = {n: (t >> 4) | (t << 4) if n.endswith("_blocks") else t for n, t in tensors.items()}
        save_file(swapped, file, metadata={"format": "pt"})
    one = computed(with_adapter(folder, "packed", "fp32"))
    assert not same(one, computed(with_adapter(gpt_oss, "bf16", "fp32")))


def test_our_bf16_model_is_the_one_that_transformers_dequantises(gpt_oss: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        gpt_oss, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16, attn_implementation="eager"
    )
    ours = load_base(gpt_oss, weights="bf16", precision="bf16", device="cpu")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())
    assert torch.equal(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)
    ids = torch.arange(60).unsqueeze(0)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_a_dense_model_is_the_one_that_transformers_loads(llama: Path) -> None:
    ours = load_base(llama, weights="bf16", precision="fp32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation="eager")
    ids = torch.arange(60).unsqueeze(0)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert not any(p.requires_grad for p in ours.parameters())
    assert ours.config._attn_implementation == "eager"


def test_packed_experts_stay_bytes_in_the_checkpoints_file(gpt_oss: Path) -> None:
    model = load_base(gpt_oss, weights="packed", precision="bf16", device="cpu")
    experts = [p for n, p in model.named_parameters() if n.endswith(("_blocks", "_scales"))]
    assert len(experts) == 8
    assert {p.dtype for p in experts} == {torch.uint8}
    assert not any(p.requires_grad for p in model.parameters())
    # Buffers would enter every DeepSpeed checkpoint.
    assert not any("experts" in n for n, _ in model.named_buffers())
    mapped = Path("/proc/self/maps").read_text()
    assert str(gpt_oss.resolve()) in mapped


def test_packed_weights_of_a_checkpoint_without_mxfp4_are_refused(llama: Path) -> None:
    with pytest.raises(UnsupportedModel, match="weights=bf16"):
        load_base(llama, weights="packed", precision="bf16", device="cpu")


@pytest.mark.parametrize("weights", ["packed", "bf16"])
@pytest.mark.parametrize("lost", ["model.layers.1.mlp.experts.down_proj_scales", "model.norm.weight"])
def test_a_missing_tensor_is_an_error_that_names_it(gpt_oss: Path, tmp_path: Path, weights: Any, lost: str) -> None:
    folder = Path(shutil.copytree(gpt_oss, tmp_path / "lost"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][lost]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(KeyMismatch, match="missing"):
        load_base(folder, weights=weights, precision="bf16", device="cpu")


def test_bf16_tensors_under_the_names_of_blocks_are_an_error(gpt_oss: Path, tmp_path: Path) -> None:
    """The fault of merging with `save_pretrained`: without it the experts would be random on reload."""
    folder = Path(shutil.copytree(gpt_oss, tmp_path / "merged"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if not n.endswith("_scales")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for weights in ("packed", "bf16"):
        with pytest.raises(KeyMismatch, match="experts"):
            load_base(folder, weights=weights, precision="bf16", device="cpu")


def test_a_dense_checkpoint_with_a_lost_tensor_is_an_error(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "lost"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KeyMismatch, match="up_proj"):
        load_base(folder, weights="bf16", precision="bf16", device="cpu")


def test_checkpointing_dequantises_a_layer_twice_a_step_and_changes_nothing(
    gpt_oss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradelora.config import TrainConfig
    from gradelora.train.setup import prepare_checkpointing

    plain = computed(with_adapter(gpt_oss, "packed", "fp32"))
    model = with_adapter(gpt_oss, "packed", "fp32")
    prepare_checkpointing(model, TrainConfig(gradient_checkpointing=True))
    calls = []
    dequantize = packed.dequantize
    monkeypatch.setattr(packed, "dequantize", lambda *a: (calls.append(1), dequantize(*a))[1])
    assert same(computed(model), plain)
    matrices = 2 * 2
    assert len(calls) == 2 * matrices


def test_a_target_that_matches_nothing_is_an_error_that_names_what_there_is(gpt_oss: Path) -> None:
    model = load_base(gpt_oss, weights="packed", precision="bf16", device="cpu")
    with pytest.raises(BadConfig, match=r"c_attn.*q_proj"):
        attach(model, LoraSettings(target_modules=("q_proj", "c_attn")))


def test_a_saved_adapter_comes_back_and_a_damaged_one_is_an_error(gpt_oss: Path, tmp_path: Path) -> None:
    from gradelora.train.result import adapter_weights, save_adapter

    model = with_adapter(gpt_oss, "packed", "fp32")
    weights = adapter_weights(model, zero3=False)
    save_adapter(tmp_path, weights, model.peft_config["default"], repo_id="a/b", commit="c" * 40)
    base = load_base(gpt_oss, weights="packed", precision="fp32", device="cpu")
    loaded = load_adapter(base, tmp_path)
    ids = torch.arange(40).unsqueeze(0)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert not any(p.requires_grad for p in loaded.parameters())
    weights.pop(next(iter(weights)))
    save_adapter(tmp_path, weights, model.peft_config["default"], repo_id="a/b", commit="c" * 40)
    with pytest.raises(KeyMismatch, match="1 missing"):
        load_adapter(load_base(gpt_oss, weights="packed", precision="fp32", device="cpu"), tmp_path)


def test_gpt_oss_120b_has_the_parameters_that_the_tutorial_prints() -> None:
    from peft import get_peft_model

    with torch.device("meta"):
        model = get_peft_model(GptOssForCausalLM(GptOssConfig()), lora_config(LoraSettings()))
    assert parameter_counts(model) == (5_971_968, 116_835_128_640)


def test_packing_changes_no_count(gpt_oss: Path) -> None:
    one, other = with_adapter(gpt_oss, "packed", "bf16"), with_adapter(gpt_oss, "bf16", "bf16")
    assert parameter_counts(one) == parameter_counts(other)
    assert AutoConfig.from_pretrained(gpt_oss).quantization_config["quant_method"] == "mxfp4"


def test_layers_are_spread_evenly_so_that_every_gpu_has_room_for_activations() -> None:
    """36 layers of a small gpt-oss on two GPUs that could each hold almost all of them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            GptOssConfig(num_local_experts=4, vocab_size=1024, num_hidden_layers=36)
        )
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    room = total * 0.9 / 1e9
    places = load._places(model, {0: f"{room}GB", 1: f"{room}GB", "cpu": "1GiB"})
    held = {0: 0, 1: 0}
    for name, parameter in model.named_parameters():
        held[load._place_of(name, places)] += parameter.numel() * parameter.element_size()
    assert max(held.values()) < 0.55 * total


@pytest.mark.parametrize("weights", ["packed", "bf16"])
def test_a_model_spread_over_what_is_free_computes_what_a_whole_one_does(gpt_oss: Path, weights: Any) -> None:
    options: Any = {"weights": weights, "precision": "fp32", "device": "cpu"}
    ids = torch.arange(60).unsqueeze(0)
    spread = load_base(gpt_oss, max_memory={"cpu": 2**30}, **options)
    assert torch.equal(spread(ids).logits, load_base(gpt_oss, **options)(ids).logits)


def test_weights_that_fit_nowhere_are_refused_with_what_is_free(gpt_oss: Path) -> None:
    with pytest.raises(NotEnoughMemory, match=r"weights of \S+ GB do not fit.*cpu: 0.0001 GB"):
        load_base(gpt_oss, weights="bf16", precision="bf16", device="cpu", max_memory={"cpu": 100_000})


def test_layers_take_135_gib_of_a_gpu_or_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradelora.train.setup import room_for_layers

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: ((150, 40)[gpu] << 30, 150 << 30))
    room = room_for_layers()
    assert (room[0], room[1]) == (135 << 30, 38 << 30)
    assert 0 < room["cpu"] <= 50 << 30


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.experts.down_proj_blocks"])
def test_a_tensor_of_another_shape_is_an_error_that_names_it(gpt_oss: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(gpt_oss, tmp_path / "reshaped"))
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(KeyMismatch, match=rf"{name} has shape \(1,.*needs"):
        load_base(folder, weights="packed", precision="bf16", device="cpu")


EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def test_experts_of_gpt_oss_120b_add_as_many_parameters_as_peft_counts_and_the_plan_says() -> None:
    from peft import get_peft_model

    settings = LoraSettings(dropout=0, target_parameters=EXPERTS)
    with torch.device("meta"):
        model = get_peft_model(GptOssForCausalLM(GptOssConfig()), lora_config(settings))
    assert parameter_counts(model) == (536_813_568, 116_835_128_640 - 5_971_968 + 536_813_568)
    base = gpt_oss_120b()
    size = size_of(base, settings)
    assert size.lora_parameters == 536_813_568
    names = {n.replace(".default", "") for n, _ in model.named_parameters() if ".lora_" in n}
    planned = {
        f"base_model.model.{m.module}.lora_{ab}.weight" for m in lora_matrices(base.tensors, settings) for ab in "AB"
    }
    assert planned == names


def test_an_expert_adapter_comes_back_on_bf16_weights_and_is_an_error_on_packed_ones(
    gpt_oss: Path, tmp_path: Path
) -> None:
    model = attach(
        load_base(gpt_oss, weights="bf16", precision="fp32", device="cpu"),
        LoraSettings(dropout=0, target_modules=(), target_parameters=EXPERTS),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        logits = model.eval()(ids).logits
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        again = load_adapter(load_base(gpt_oss, weights="bf16", precision="fp32", device="cpu"), tmp_path)
        assert torch.equal(again.eval()(ids).logits, logits)
        with model.disable_adapter():
            assert not torch.equal(model(ids).logits, logits)
    with pytest.raises(KeyMismatch, match="does not fit"):
        load_adapter(load_base(gpt_oss, weights="packed", precision="fp32", device="cpu"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ("experts.gate_up_proj", "experts.up_proj")}, r"experts\.up_proj match no parameter.*"
         r"experts\.gate_up_proj"),
        ({"target_modules": ("q_proj", "up_proj")}, "up_proj match no module"),
    ],
)  # fmt: skip
def test_a_target_that_matches_nothing_is_an_error_beside_one_that_does(
    gpt_oss: Path, settings: dict[str, Any], message: str
) -> None:
    model = load_base(gpt_oss, weights="bf16", precision="bf16", device="cpu")
    with pytest.raises(BadConfig, match=message):
        attach(model, LoraSettings(dropout=0, **settings))


def test_experts_are_trained_without_dropout_and_unpacked_or_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="set dropout=0"):
        LoraSettings(target_parameters=EXPERTS)
    with pytest.raises(ValueError, match="both empty"):
        LoraSettings(target_modules=())
    with pytest.raises(ValueError, match="set weights=bf16"):
        TrainConfig(weights="packed", lora=LoraSettings(dropout=0, target_parameters=EXPERTS))


@pytest.mark.slow
def test_experts_learn_under_zero2_and_merge_into_what_scores_the_same(gpt_oss: Path, tmp_path: Path) -> None:
    """Two real ranks; what comes out holds factors of the experts alone, and its merge in bf16 loads."""
    lora = LoraSettings(dropout=0, target_modules=(), target_parameters=EXPERTS)
    config = changed(weights="bf16", lora=lora.model_dump(), max_steps=4, epochs=1, learning_rate=1e-2)
    snapshot, data = snapshot_of(gpt_oss), save_encoded(tmp_path / "data", answers=6)
    for name in ("adapter", "report", "merged"):
        (tmp_path / name).mkdir()
    adapter = train(config, snapshot, data, out=tmp_path / "adapter", runtime=RUNTIME)
    factors = load_file(adapter.path / "adapter_model.safetensors")
    assert {".".join(n.split(".")[6:]) for n in factors} == {
        f"experts{wrapped}.lora_{ab}.weight" for wrapped in ("", ".base_layer") for ab in "AB"
    }
    assert all(t.abs().sum() > 0 for n, t in factors.items() if "lora_B" in n)
    assert adapter.trainable_parameters == sum(t.numel() for t in factors.values())
    losses = [entry["loss"] for entry in history(adapter)]
    assert losses[-1] < losses[0]
    scoring = EvaluateConfig(splits=("validation",), device="cpu", weights="bf16", precision="fp32", resamples=100)
    report = evaluate(scoring, snapshot, adapter, data, out=tmp_path / "report", runtime=RUNTIME)
    merging = MergeStageConfig(dtype="bf16", device="cpu", weights="bf16", precision="fp32")
    merged = merge(merging, snapshot, adapter, report, data, out=tmp_path / "merged", runtime=RUNTIME)
    assert merged.agreed is not None
    assert merged.agreed.changed_scores == merged.agreed.ties
