"""What an adapter does to which weight, read from its two files without building a model."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.errors import KeyMismatch, UnsupportedModel
from gradelora.merge.checkpoint import Shard, Tensor, read_shard
from gradelora.merge.settings import by_pattern, refuse, scale_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = ("BF16", "F16", "F32")
BLOCKS_SUFFIX, SCALES_SUFFIX = "_blocks", "_scales"
# In the order in which transformers' GptOssExperts declares them.
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


class Targets(Frozen):
    """All that an adapter changes: matrices of linear layers, and weights of experts."""

    linear: tuple["Target", ...]
    experts: tuple["ExpertTarget", ...]


class Target(Frozen):
    """One weight to rewrite: W + scale * B @ A, and for DoRA its rows scaled to `magnitude`.

    A[r, in] and B[out, r] and magnitude[out] lie in the adapter's file; `weight` in the base's shard.
    """

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    magnitude: Tensor | None
    scale: float


class ExpertTarget(Frozen):
    """The weights [E, K, R] of a layer's experts, W + scale * (B_e @ A_e) transposed for each expert e.

    `stored` is the one tensor, or blocks and scales of MXFP4.  A[r * E, K] holds the experts one
    behind the other, B[R, r * E] interleaved (peft/tuners/lora/layer.py, ParamWrapper).
    """

    name: str
    shape: tuple[int, int, int]
    stored: tuple[Tensor, ...]
    lora_a: Tensor
    lora_b: Tensor
    rank: int
    scale: float


def read_targets(adapter: Path, shards: Iterable[Shard]) -> Targets:
    """What the adapter adds to which weight.

    Raises UnsupportedModel for what cannot be merged exactly, with the reason, and KeyMismatch
    for an adapter tensor that finds no weight, has no partner or another shape.
    """
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    refuse(config, adapter / ADAPTER_CONFIG)
    factors = _grouped(read_shard(adapter / ADAPTER_WEIGHTS))
    weights = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    experts = expert_targets(config, factors, weights)
    linear = tuple(_target(module, factors[module], weights, config) for module in sorted(factors))
    return Targets(linear=linear, experts=experts)


def refuse_tied(targets: Targets, base: Path) -> None:
    """Raise UnsupportedModel for a weight that the base uses twice: the adapter changed one use alone."""
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    for name in (target.weight.name for target in targets.linear):
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
    weight, rank = weights.get(f"{module}.weight"), by_pattern(config, "rank_pattern", module, config["r"])
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
    scale = scale_of(config, module, rank)
    return Target(weight=weight, lora_a=factors["A"], lora_b=factors["B"], magnitude=factors.get("m"), scale=scale)


def expert_targets(
    config: Mapping[str, Any], factors: dict[str, dict[str, Tensor]], weights: Mapping[str, Tensor]
) -> tuple[ExpertTarget, ...]:
    """The targets of `target_parameters`; their factors are taken out of `factors`.

    PEFT wraps a module once for each of its parameters, the first one innermost:
    `experts.base_layer.lora_A` is gate_up_proj's where `experts.lora_A` is down_proj's.
    """
    wanted = config.get("target_parameters") or ()
    stored = {name.removesuffix(BLOCKS_SUFFIX): name for name in weights if not name.endswith(SCALES_SUFFIX)}
    named = [n for n in stored if any(n == w or n.endswith(f".{w}") for w in wanted)]
    found = []
    for module in sorted({name.rpartition(".")[0] for name in named}):
        inside = {name.rpartition(".")[2] for name in named if name.rpartition(".")[0] == module}
        if not inside <= set(EXPERT_WEIGHTS):
            raise UnsupportedModel(
                f"{module}: target_parameters name {', '.join(sorted(inside))}; only "
                f"{' and '.join(EXPERT_WEIGHTS)} of experts can be merged; keep the adapter unmerged"
            )
        for depth, leaf in enumerate(sorted(inside, key=EXPERT_WEIGHTS.index, reverse=True)):
            own = factors.pop(module + ".base_layer" * depth, {})
            found.append(_expert_target(f"{module}.{leaf}", own, weights, config))
    if wanted and not found:
        raise KeyMismatch(f"target_parameters={list(wanted)}: the base has no weight of that name")
    return tuple(found)


def _expert_target(
    name: str, factors: Mapping[str, Tensor], weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> ExpertTarget:
    rank = by_pattern(config, "rank_pattern", name, config["r"])
    if name in weights:
        stored: tuple[Tensor, ...] = (weights[name],)
        shape, known = weights[name].shape, weights[name].dtype == "BF16" and len(weights[name].shape) == 3
    else:
        stored = (weights[name + BLOCKS_SUFFIX], weights[name + SCALES_SUFFIX])
        E, R, G, B = stored[0].shape
        shape, known = (E, G * B * 2, R), stored[0].dtype == stored[1].dtype == "U8" and R % 2 == 0
    if not known:
        raise UnsupportedModel(
            f"{name}: stored as {stored[0].dtype}{list(stored[0].shape)}; experts can be merged in bf16 or MXFP4"
        )
    E, K, R = shape
    expected = {"A": (rank * E, K), "B": (R, rank * E)}
    actual = {kind: tensor.shape for kind, tensor in factors.items()}
    if actual != expected:
        raise KeyMismatch(f"{name}: the adapter's shapes are {actual}, {expected} expected for {list(shape)}")
    scale = scale_of(config, name, rank)
    return ExpertTarget(
        name=name, shape=(E, K, R), stored=stored, lora_a=factors["A"], lora_b=factors["B"], rank=rank, scale=scale
    )
