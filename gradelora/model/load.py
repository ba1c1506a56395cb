"""The frozen base model, from the files of one commit.

MXFP4 checkpoints are read here, tensor by tensor: transformers' own quantizer refuses to train
and holds the whole model in bf16 on the way.  Everything else goes through `from_pretrained`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from gradelora.errors import NotEnoughMemory, UnsupportedModel
from gradelora.model.heap import few_kernels, no_holes
from gradelora.model.keys import check_keys, check_shape
from gradelora.model.mxfp4 import BLOCKS_SUFFIX, SCALES_SUFFIX, dequantize
from gradelora.model.packed import pack_experts

Weights = Literal["packed", "bf16"]
Precision = Literal["bf16", "fp32"]
Device = Literal["cpu", "cuda"]
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Most of the weights by GPU number or "cpu": bytes, or a size such as "135GiB".
Room = Mapping[int | str, int | str]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Checkpoint:
    """The safetensors files of a snapshot; CPU tensors are memory-mapped, not copied."""

    def __init__(self, snapshot: Path) -> None:
        self.where = snapshot
        if (snapshot / INDEX_FILE).is_file():
            index = json.loads((snapshot / INDEX_FILE).read_text(encoding="utf-8"))
            self.file_of: dict[str, str] = index["weight_map"]
        elif (snapshot / SINGLE_FILE).is_file():
            with safe_open(snapshot / SINGLE_FILE, framework="pt") as file:
                self.file_of = dict.fromkeys(file.keys(), SINGLE_FILE)
        else:
            raise UnsupportedModel(f"{snapshot}: neither {INDEX_FILE} nor {SINGLE_FILE}; only safetensors are read")
        self._open: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    @property
    def is_mxfp4(self) -> bool:
        """Whether any tensor is stored as blocks and scales."""
        return any(name.endswith(BLOCKS_SUFFIX) for name in self.file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as stored."""
        file = self.file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(self.where / file, framework="pt")
        return self._open[file].get_tensor(name)

    def weight(self, name: str, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """A parameter's value: bytes as they are, floats as `dtype`, blocks and scales dequantised.

        Dequantised on `device`: a GPU takes seconds for what takes a CPU ten minutes at 120b.
        """
        if name not in self:
            blocks, scales = self.tensor(name + BLOCKS_SUFFIX), self.tensor(name + SCALES_SUFFIX)
            return dequantize(blocks.to(device), scales.to(device), dtype)
        tensor = self.tensor(name).to(device)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


def load_base(
    snapshot: Path,
    *,
    weights: Weights,
    precision: Precision,
    device: Device,
    expert_chunk: int = 0,
    max_memory: Room | None = None,
    config: Path | None = None,
) -> PreTrainedModel:
    """The base, every parameter frozen, eager attention, in eval mode.

    packed: experts stay MXFP4, memory-mapped on a CPU, dequantised `expert_chunk` experts at a
    time (0: a whole layer).  bf16: everything dequantised; under ZeRO-3 each rank keeps its
    shard, one gathered tensor at a time.  `max_memory` spreads the layers over the GPUs (and
    the CPU).  `config`: config.json, where it does not lie beside the weights.  Raises
    KeyMismatch, NotEnoughMemory where `max_memory` is too little, or UnsupportedModel where the
    files are not what `weights` needs.
    """
    few_kernels()
    if weights == "packed" or is_deepspeed_zero3_enabled():
        no_holes()
    checkpoint = Checkpoint(snapshot)
    if checkpoint.is_mxfp4:
        described = AutoConfig.from_pretrained(config or snapshot)
        model = _load_mxfp4(checkpoint, described, weights, DTYPES[precision], device, expert_chunk, max_memory)
    elif weights == "packed":
        raise UnsupportedModel(f"{snapshot}: no MXFP4 experts to keep packed; set train.weights=bf16")
    else:
        model = _load_dense(snapshot, DTYPES[precision], device, max_memory, config)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.eval()


def _load_mxfp4(
    checkpoint: Checkpoint,
    config: Any,
    weights: Weights,
    dtype: torch.dtype,
    device: Device,
    expert_chunk: int,
    max_memory: Room | None,
) -> PreTrainedModel:
    if config.model_type != "gpt_oss":
        raise UnsupportedModel(f"{checkpoint.where}: MXFP4 in a {config.model_type} model; only gpt_oss is known")
    # With it, transformers would put its own MXFP4 quantizer in charge.
    del config.quantization_config
    model = _empty(config, dtype)
    if weights == "packed":
        pack_experts(model, config, expert_chunk)
    _check_names(model, checkpoint)
    _fill(model, checkpoint, dtype, device, max_memory)
    return model


def _load_dense(
    snapshot: Path, dtype: torch.dtype, device: Device, max_memory: Room | None, config: Path | None
) -> PreTrainedModel:
    placed: dict[str, Any] = {"device_map": "auto", "max_memory": max_memory} if max_memory else {}
    # Without the second it looks for config.json in the folder again.
    described = (
        {"config": AutoConfig.from_pretrained(config), "generation_config": GenerationConfig()} if config else {}
    )
    model, info = AutoModelForCausalLM.from_pretrained(
        snapshot, dtype=dtype, attn_implementation="eager", output_loading_info=True, **placed, **described
    )
    check_keys(str(snapshot), missing=set(info["missing_keys"]), unexpected=set(info["unexpected_keys"]))
    return model if placed or is_deepspeed_zero3_enabled() else model.to(device)


def _empty(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model without values: on the meta device, or sharded under ZeRO-3."""
    with _zero3_shards() if is_deepspeed_zero3_enabled() else torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    if not is_deepspeed_zero3_enabled():
        # No file holds the rotary frequencies, so they are computed anew outside of meta.
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


@contextlib.contextmanager
def _zero3_shards() -> Iterator[None]:
    """Every parameter is split among the ranks as soon as it exists, and never initialised."""
    import deepspeed
    from transformers import initialization
    from transformers.integrations.deepspeed import deepspeed_config
    from transformers.modeling_utils import prevent_arange_dtype_change, set_zero3_state

    shards = deepspeed.zero.Init(config_dict_or_path=deepspeed_config())
    with initialization.no_init_weights(), prevent_arange_dtype_change(), shards, set_zero3_state():
        yield


def _check_names(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    stored = set(checkpoint.file_of)
    wanted = set(model.state_dict())
    for name in sorted(wanted - stored):
        if {name + BLOCKS_SUFFIX, name + SCALES_SUFFIX} <= stored:
            stored = stored - {name + BLOCKS_SUFFIX, name + SCALES_SUFFIX} | {name}
    tied = set(model.all_tied_weights_keys) - stored
    check_keys(str(checkpoint.where), missing=wanted - stored - tied, unexpected=stored - wanted)


def _fill(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: Device,
    max_memory: Room | None,
) -> None:
    """Give every parameter its value, one tensor at a time, on the device where it belongs."""
    if is_deepspeed_zero3_enabled():
        _fill_shards(model, checkpoint, dtype)
        return
    places = _places(model, max_memory) if max_memory else {"": device}
    for name in [n for n, _ in model.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        value = checkpoint.weight(name, dtype, _place_of(name, places))
        check_shape(f"{checkpoint.where}: {name}", value.shape, model.get_parameter(name).shape)
        model.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    model.tie_weights()
    if not max_memory:
        model.to(device)
        return
    from accelerate import dispatch_model

    dispatch_model(model, device_map=places)


def _places(model: PreTrainedModel, max_memory: Room) -> dict[str, Any]:
    """Which module goes where: accelerate's plan, whole decoder layers together, GPUs filled evenly."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import convert_file_size_to_int, get_balanced_memory

    whole = list(model._no_split_modules)
    # Left to itself, accelerate fills the first GPU to its limit and leaves no room for activations.
    balanced = get_balanced_memory(model, dict(max_memory), no_split_module_classes=whole)
    places = dict(infer_auto_device_map(model, balanced, no_split_module_classes=whole))
    if "disk" in places.values():
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
        room = ", ".join(
            f"{place}: {convert_file_size_to_int(size) / 1e9:.3g} GB" for place, size in max_memory.items()
        )
        raise NotEnoughMemory(
            f"weights of {needed / 1e9:.3g} GB do not fit, whole layers together, into what is free ({room}); "
            "set weights=packed, free memory, or take more GPUs"
        )
    return places


def _place_of(name: str, places: dict[str, Any]) -> Any:
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def _fill_shards(model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Rank 0 reads; gathering one parameter at a time bounds the memory of every rank."""
    import deepspeed

    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                value = checkpoint.weight(name, dtype, parameter.device)
                check_shape(f"{checkpoint.where}: {name}", value.shape, parameter.shape)
                parameter.data.copy_(value)
