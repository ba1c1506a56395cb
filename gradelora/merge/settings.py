"""An adapter's settings: which of them a merge reproduces, and what they say about one target.

Follows PEFT 0.21 (peft/tuners/lora/layer.py, model.py): scale = alpha / r, or alpha / sqrt(r)
with rsLoRA; rank_pattern and alpha_pattern are matched at the end of the target's name.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradelora.errors import UnsupportedModel

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
        "target_parameters",
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
    "init_lora_weights": "this initialisation also changes the base's weights",
    "lora_bias": "the base may have no bias to add to",
    "trainable_token_indices": "it replaces rows of the embedding",
    "alora_invocation_tokens": "it acts on some tokens only",
}


def refuse(config: Mapping[str, Any], path: Path) -> None:
    """Raise UnsupportedModel for any setting that this merge does not reproduce exactly."""
    if config.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{path}: peft_type={config.get('peft_type')!r}; only LORA adapters can be merged")
    # These initialise the factors alone.
    allowed = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}
    for field, value in sorted(config.items()):
        if field in HARMLESS or not value or value in allowed.get(field, ()):
            continue
        reason = REASONS.get(field, "its effect on the weights is not known here")
        raise UnsupportedModel(f"{path}: {field}={value!r} cannot be merged: {reason}; keep the adapter unmerged")


def scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / r of one target, or alpha / sqrt(r) with rsLoRA."""
    alpha: float = by_pattern(config, "alpha_pattern", name, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def by_pattern(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """The first pattern that ends the module's name, as peft.utils.other.get_pattern_key finds it."""
    for pattern, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
