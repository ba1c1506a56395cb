"""Tiny models with random weights, saved as the real ones are."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from gradelora.model.mxfp4 import quantize

VOCAB = 128


def tiny_gpt_oss_config(**changes: Any) -> GptOssConfig:
    """Two layers, one with a window of 8; YaRN stretches an original context of 32."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return GptOssConfig(**(values | changes))


def save_gpt_oss(folder: Path, seed: int = 0, shards: int = 2, **changes: Any) -> Path:
    """A random gpt-oss checkpoint: MXFP4 experts as blocks and scales, bf16 else, sharded with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = tiny_gpt_oss_config(**changes)
    model = GptOssForCausalLM(config).to(torch.bfloat16)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = quantize(value)
        else:
            # Biases, sinks and norms start at 0 or 1; random ones make every mistake visible.
            noise = 0.2 * torch.randn_like(value) if value.ndim == 1 or name.endswith("_bias") else 0
            tensors[name] = (value + noise).contiguous()
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        part = {n: t for n, t in tensors.items() if weight_map[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    written = {**config.to_dict(), "dtype": "bfloat16", "architectures": ["GptOssForCausalLM"]}
    written["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def save_llama(folder: Path, seed: int = 0) -> Path:
    """A random dense model with tied embeddings, as SmolLM2 has them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
