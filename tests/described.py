"""Descriptions of real models, from their published config values: no weights, no network."""

from typing import Any

from gradelora.artifacts import BaseModel, RemoteFile
from gradelora.preflight.known import KNOWN, describe

# meta-llama/Llama-3.1-8B and Qwen/Qwen3-4B, as their config.json says.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def gpt_oss(layers: int = 36, experts: int = 128) -> BaseModel:
    """openai/gpt-oss-120b (36 layers, 128 experts) or -20b (24, 32), its weights in one file with a checksum."""
    name = "openai/gpt-oss-120b" if layers == 36 else "openai/gpt-oss-20b"
    base = describe(name, KNOWN[name] | {"num_hidden_layers": layers, "num_local_experts": experts})
    size = sum(t.nbytes for t in base.tensors)
    weights = RemoteFile(name="model.safetensors", size=size, sha256="c" * 64, git_sha1="d" * 40)
    return base.model_copy(update={"commit": "b" * 40, "remote_files": (weights,)})
