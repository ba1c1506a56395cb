"""Descriptions that ship with the project: planned without a network, from published config values.

The tensors follow from config.json, as the model's own code builds them; a resolve gives the
same numbers from the headers of the files themselves.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradelora.artifacts import BaseModel, RemoteFile, TensorInfo

WIDTH = {"BF16": 2, "U8": 1}
# What stands in the place of a commit: nothing was asked of the Hub.
UNRESOLVED = "as published"
# Of tokenizer.json and the other small files.
SMALL_FILES_BYTES = 28_000_000
# MXFP4: 32 values in a block of 16 bytes, one byte of scale (OCP Microscaling Formats 1.0).
MXFP4_VALUES, MXFP4_BYTES = 32, 16


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "vocab_size": 201_088,
        "tie_word_embeddings": False,
    }


KNOWN: Mapping[str, dict[str, Any]] = {
    "openai/gpt-oss-120b": _gpt_oss(36, 128),
    "openai/gpt-oss-20b": _gpt_oss(24, 32),
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
}


def known_model(repo_id: str) -> BaseModel | None:
    """The shipped description of a repository, or None where there is none."""
    return describe(repo_id, KNOWN[repo_id]) if repo_id in KNOWN else None


def describe(repo_id: str, config: Mapping[str, Any]) -> BaseModel:
    """A gpt-oss, or a dense model shaped like Llama or Qwen, from the values of its config.json."""
    layer = _gpt_oss_layer(config) if config["model_type"] == "gpt_oss" else _dense_layer(config)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], config["hidden_size"])}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    tensors = [_tensor("model.norm.weight", (config["hidden_size"],)), *(_tensor(n, s) for n, s in shapes.items())]
    for index in range(config["num_hidden_layers"]):
        tensors += [_tensor(f"model.layers.{index}.{name}", shape) for name, shape in layer.items()]
    size = sum(t.nbytes for t in tensors)
    files = {"model.safetensors": size, "tokenizer.json": SMALL_FILES_BYTES}
    return BaseModel(
        path=Path(),
        files=(),
        repo_id=repo_id,
        commit=UNRESOLVED,
        config_json=json.dumps(config),
        remote_files=tuple(RemoteFile(name=n, size=s, sha256=None, git_sha1=f"unknown-{n}") for n, s in files.items()),
        tensors=tuple(tensors),
    )


def _attention(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Query, key, value and output projections; gpt-oss has biases on all, Qwen 2 on the first three."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    wide, narrow = heads * head_dim, config["num_key_value_heads"] * head_dim
    rows = {"q_proj": (wide, hidden), "k_proj": (narrow, hidden), "v_proj": (narrow, hidden), "o_proj": (hidden, wide)}
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}.weight": shape for name, shape in rows.items()}
    biased = {"gpt_oss": tuple(rows), "qwen2": tuple(rows)[:3]}.get(config["model_type"], ())
    shapes |= {f"self_attn.{name}.bias": rows[name][:1] for name in biased}
    if config["model_type"] == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    return shapes


def _norms(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (config["hidden_size"],))


def _dense_layer(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    wide = (config["intermediate_size"], config["hidden_size"])
    mlp = {"mlp.gate_proj.weight": wide, "mlp.up_proj.weight": wide, "mlp.down_proj.weight": wide[::-1]}
    return _norms(config) | _attention(config) | mlp


def _gpt_oss_layer(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    return {
        **_norms(config),
        **_attention(config),
        "self_attn.sinks": (config["num_attention_heads"],),
        "mlp.router.weight": (experts, hidden),
        "mlp.router.bias": (experts,),
        "mlp.experts.gate_up_proj_blocks": (experts, 2 * inner, hidden // MXFP4_VALUES, MXFP4_BYTES),
        "mlp.experts.gate_up_proj_scales": (experts, 2 * inner, hidden // MXFP4_VALUES),
        "mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
        "mlp.experts.down_proj_blocks": (experts, hidden, inner // MXFP4_VALUES, MXFP4_BYTES),
        "mlp.experts.down_proj_scales": (experts, hidden, inner // MXFP4_VALUES),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }


def _tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
    """One tensor: uint8 for MXFP4 blocks and scales, else bfloat16."""
    dtype = "U8" if name.endswith(("_blocks", "_scales")) else "BF16"
    nbytes = WIDTH[dtype] * math.prod(shape)
    return TensorInfo(name=name, dtype=dtype, shape=shape, file="model.safetensors", nbytes=nbytes)
