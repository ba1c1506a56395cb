"""Descriptions of real models, from their published config values: no weights, no network."""

import json
import math
from pathlib import Path

from gradelora.artifacts import BaseModel, RemoteFile, TensorInfo

WIDTH = {"BF16": 2, "U8": 1}


def gpt_oss(layers: int = 36, experts: int = 128) -> BaseModel:
    """openai/gpt-oss-120b (36 layers, 128 experts) or -20b (24, 32): config.json's values and tensor shapes."""
    hidden, intermediate, vocabulary, heads, kv_heads, head_dim = 2880, 2880, 201088, 64, 8, 64
    blocks = hidden // 32
    tensors = [
        tensor("model.embed_tokens.weight", (vocabulary, hidden)),
        tensor("model.norm.weight", (hidden,)),
        tensor("lm_head.weight", (vocabulary, hidden)),
    ]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.sinks": (heads,),
        "self_attn.q_proj.weight": (heads * head_dim, hidden),
        "self_attn.q_proj.bias": (heads * head_dim,),
        "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
        "self_attn.k_proj.bias": (kv_heads * head_dim,),
        "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
        "self_attn.v_proj.bias": (kv_heads * head_dim,),
        "self_attn.o_proj.weight": (hidden, heads * head_dim),
        "self_attn.o_proj.bias": (hidden,),
        "mlp.router.weight": (experts, hidden),
        "mlp.router.bias": (experts,),
        "mlp.experts.gate_up_proj_blocks": (experts, 2 * intermediate, blocks, 16),
        "mlp.experts.gate_up_proj_scales": (experts, 2 * intermediate, blocks),
        "mlp.experts.gate_up_proj_bias": (experts, 2 * intermediate),
        "mlp.experts.down_proj_blocks": (experts, hidden, blocks, 16),
        "mlp.experts.down_proj_scales": (experts, hidden, blocks),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }
    for index in range(layers):
        tensors += [tensor(f"model.layers.{index}.{name}", shape) for name, shape in layer.items()]
    config = {
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_experts_per_tok": 4,
        "vocab_size": vocabulary,
    }
    size = sum(t.nbytes for t in tensors)
    return BaseModel(
        path=Path(),
        files=(),
        repo_id="openai/gpt-oss-120b" if layers == 36 else "openai/gpt-oss-20b",
        commit="b" * 40,
        config_json=json.dumps(config),
        remote_files=(RemoteFile(name="model.safetensors", size=size, sha256="c" * 64, git_sha1="d" * 40),),
        tensors=tuple(tensors),
    )


def tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
    """One tensor: uint8 for MXFP4 blocks and scales, else bfloat16."""
    dtype = "U8" if name.endswith(("_blocks", "_scales")) else "BF16"
    return TensorInfo(
        name=name, dtype=dtype, shape=shape, file="model.safetensors", nbytes=WIDTH[dtype] * math.prod(shape)
    )
