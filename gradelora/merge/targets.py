"""What an adapter does to which weight, read from its two files without building a model.

Follows PEFT 0.21 (peft/tuners/lora/layer.py, model.py): scale = alpha / r, or alpha / sqrt(r)
with rsLoRA; rank_pattern and alpha_pattern are matched at the end of the module's name.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.errors import KeyMismatch, UnsupportedModel
from gradelora.merge.checkpoint import Shard, Tensor, read_shard

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = ("BF16", "F16", "F32")
# Fields that a merge reads, or that change training and names alone, never the merged weight.
HARMLESS = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "use_dora",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "ensure_weight_tying",
    }
)
REASONS = {
    "fan_in_fan_out": "the base stores these weights transposed",
    "modules_to_save": "it replaces whole modules of the base",
    "target_parameters": "expert weights in MXFP4 cannot hold the sum exactly; serve base and adapter side by side",
    "init_lora_weights": "this initialisation also changes the base's weights",
    "lora_bias": "the base may have no bias to add to",
    "trainable_token_indices": "it replaces rows of the embedding",
    "alora_invocation_tokens": "it acts on some tokens only",
}


class Target(Frozen):
    """One weight to rewrite: W + scale * B @ A, and for DoRA its rows scaled to `magnitude`.

    A[r, in] and B[out, r] and magnitude[out] lie in the adapter's file; `weight` in the base's shard.
    """

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    magnitude: Tensor | None
    scale: float


def read_targets(adapter: Path, shards: Iterable[Shard]) -> dict[str, Target]:
    """Weight name -> what the adapter adds to it.

    Raises UnsupportedModel for what cannot be merged exactly, with the reason, and KeyMismatch
    for an adapter tensor that finds no weight, has no partner or another shape.
    """
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    _refuse(config, adapter / ADAPTER_CONFIG)
    factors = _grouped(read_shard(adapter / ADAPTER_WEIGHTS))
    weights = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    return {f"{module}.weight": _target(module, factors[module], weights, config) for module in sorted(factors)}


def _refuse(config: Mapping[str, Any], path: Path) -> None:
    """Raise UnsupportedModel for any setting that this merge does not reproduce exactly."""
    if config.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{path}: peft_type={config.get('peft_type')!r}; only LORA adapters can be merged")
    allowed = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
    for field, value in sorted(config.items()):
        if field in HARMLESS or not value or value in allowed.get(field, ()):
            continue
        reason = REASONS.get(field, "its effect on the weights is not known here")
        raise UnsupportedModel(f"{path}: {field}={value!r} cannot be merged: {reason}; keep the adapter unmerged")


def refuse_tied(targets: Mapping[str, Target], base: Path) -> None:
    """Raise UnsupportedModel for a weight that the base uses twice: the adapter changed one use alone."""
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    for name in targets:
        if tied and name.endswith(("lm_head.weight", "embed_tokens.weight")):
            raise UnsupportedModel(f"{name}: tied to the other end of the model; keep the adapter unmerged")


def _grouped(file: Shard) -> dict[str, dict[str, Tensor]]:
    """Module name -> its factors by kind.  Raises KeyMismatch for a name that is no LoRA factor."""
    kinds = {
        "lora_A.weight": "A",
        "lora_B.weight": "B",
        "lora_magnitude_vector": "m",
        "lora_magnitude_vector.weight": "m",
    }
    factors: dict[str, dict[str, Tensor]] = {}
    for tensor in file.tensors:
        found = re.fullmatch(r"(.+?)\.(lora_.+)", tensor.name.removeprefix(PREFIX))
        if not tensor.name.startswith(PREFIX) or not found or found[2] not in kinds:
            raise KeyMismatch(f"{file.name}: {tensor.name} is no LoRA factor of a linear layer; it would be lost")
        factors.setdefault(found[1], {})[kinds[found[2]]] = tensor
    if not factors:
        raise KeyMismatch(f"{file.name}: holds no tensor; train the adapter again")
    return factors


def _target(
    module: str, factors: Mapping[str, Tensor], weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Target:
    weight, rank = weights.get(f"{module}.weight"), _by_pattern(config, "rank_pattern", module, config["r"])
    if weight is None:
        raise KeyMismatch(f"{module}: the adapter changes it, but the base has no weight of that name")
    if weight.dtype not in FLOATS:
        raise UnsupportedModel(
            f"{weight.name}: stored as {weight.dtype}; only {', '.join(FLOATS)} can be merged exactly"
        )
    expected = {"A": (rank, *weight.shape[1:]), "B": (*weight.shape[:1], rank)}
    if config.get("use_dora"):
        expected["m"] = weight.shape[:1]
    actual = {kind: tensor.shape for kind, tensor in factors.items()}
    if actual != expected:
        raise KeyMismatch(f"{module}: the adapter's shapes are {actual}, {expected} expected for {weight.shape}")
    alpha = _by_pattern(config, "alpha_pattern", module, config["lora_alpha"])
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Target(weight=weight, lora_a=factors["A"], lora_b=factors["B"], magnitude=factors.get("m"), scale=scale)


def _by_pattern(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """The first pattern that ends the module's name, as peft.utils.other.get_pattern_key finds it."""
    for pattern, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
