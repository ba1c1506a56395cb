"""Sizes of a model, from its config and its safetensors headers alone."""

import math
from collections.abc import Iterable

from gradelora.artifacts import BaseModel, Frozen, TensorInfo
from gradelora.config import LoraSettings
from gradelora.errors import UnsupportedModel

BLOCKS, SCALES = "_blocks", "_scales"


class ModelSize(Frozen):
    """Counts of parameters, bytes on disk, and the widths that activations follow."""

    parameters: int
    disk_bytes: int
    expert_parameters: int
    expert_disk_bytes: int
    lora_parameters: int
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    active_intermediate: int
    vocabulary: int

    @property
    def bf16_bytes(self) -> int:
        """All weights at two bytes each."""
        return 2 * self.parameters

    @property
    def other_parameters(self) -> int:
        """All but the experts that are kept packed."""
        return self.parameters - self.expert_parameters


def size_of(base: BaseModel, lora: LoraSettings) -> ModelSize:
    """Measure a base model and the adapter that `lora` would put on it.

    Raises UnsupportedModel for a LoRA target that matches no weight.
    """
    config = base.config
    heads = config["num_attention_heads"]
    experts = [t for t in base.tensors if t.name.endswith((BLOCKS, SCALES))]
    active = config.get("num_experts_per_tok", 1) or 1
    return ModelSize(
        parameters=sum(map(_parameters, base.tensors)),
        disk_bytes=sum(t.nbytes for t in base.tensors),
        expert_parameters=sum(map(_parameters, experts)),
        expert_disk_bytes=sum(t.nbytes for t in experts),
        lora_parameters=_lora_parameters(base.tensors, lora),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        active_intermediate=active * config["intermediate_size"],
        vocabulary=config["vocab_size"],
    )


def _parameters(tensor: TensorInfo) -> int:
    """A byte of MXFP4 blocks holds two parameters; a scale is none."""
    count = math.prod(tensor.shape)
    if tensor.name.endswith(BLOCKS):
        return 2 * count
    return 0 if tensor.name.endswith(SCALES) else count


def _lora_parameters(tensors: Iterable[TensorInfo], lora: LoraSettings) -> int:
    """r x (in + out) for every targeted matrix."""
    total, missing = 0, set(lora.target_modules)
    for tensor in tensors:
        parts = tensor.name.split(".")
        if parts[-1] == "weight" and len(tensor.shape) == 2 and parts[-2] in lora.target_modules:
            total += lora.r * sum(tensor.shape)
            missing.discard(parts[-2])
    if missing:
        raise UnsupportedModel(
            f"train.lora.target_modules: {', '.join(sorted(missing))} match no weight of the model; remove them"
        )
    return total
