"""A tiny gpt-oss checkpoint in the on-disk layout of openai/gpt-oss: `python -m gradelora.sandbox.tiny_gpt_oss OUT`.

Same architecture (YaRN, attention sinks, alternating sliding attention, routed experts), same
tensor names, MXFP4 experts, bf16 rest, shards with an index, and the repository's other files.
It is pretrained for half a minute on other subjects than the sample's, so that LoRA on its
attention has something to steer.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradelora.artifacts import canonical_json, sha256_file, sha256_text
from gradelora.prompt.harmony import system_text
from gradelora.prompt.layout import developer_text, user_text
from gradelora.sandbox import answers, curriculum, tokenizer
from gradelora.sandbox.answers import CURRICULUM_QUESTIONS, SAMPLE_QUESTIONS, read_questions
from gradelora.sandbox.curriculum import ENCODING, curriculum_questions
from gradelora.sandbox.tokenizer import CALL, END_OF_TEXT, RETURN, START_OF_TEXT, VOCABULARY, write_tokenizer

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
LAYERS = 2
# openai/gpt-oss-120b's config.json, with tiny sizes.
CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "experts_per_token": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "output_router_logits": False,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 32,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
CARD = """\
---
license: apache-2.0
---
A tiny model in the layout of gpt-oss, for trying things out. It knows next to nothing.
"""


def build(out: Path, *, seed: int = 0) -> Path:
    """Build the checkpoint in `out`, about 40 CPU-seconds; a finished one of the same recipe is left alone.

    It is built under a private name and renamed, so `out` is whole or absent.
    """
    recipe = recipe_digest(seed)
    if _recipe_of(out) == recipe:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(private, seed, recipe)
        shutil.rmtree(out, ignore_errors=True)
        private.rename(out)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return out


def recipe_digest(seed: int) -> str:
    """sha256 of all that decides the checkpoint: seed, sizes, texts, prompt and the code here."""
    files = [Path(module.__file__ or "") for module in (answers, curriculum, tokenizer)]
    # By name, not by import: a finished checkpoint is recognised without torch.
    files.append(Path(__file__).with_name("pretrain.py"))
    digests = [sha256_file(path) for path in (Path(__file__), *files, CURRICULUM_QUESTIONS, SAMPLE_QUESTIONS)]
    prompt = [
        system_text(ENCODING.conversation_date, ENCODING.reasoning_effort),
        developer_text(ENCODING.instructions, ENCODING.target),
        user_text("{question}", "{rubric}", 0),
    ]
    return sha256_text(canonical_json([seed, digests, prompt]))


def _recipe_of(out: Path) -> str | None:
    """The recipe of a finished checkpoint: its index is written last."""
    try:
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((out / shard).is_file() for shard in index["weight_map"].values())
    return index["metadata"].get("recipe") if whole else None


def _fill(out: Path, seed: int, recipe: str) -> None:
    import torch

    from gradelora.prompt import load_layout
    from gradelora.sandbox.pretrain import pretrain

    questions = (*curriculum_questions(), *read_questions(SAMPLE_QUESTIONS))
    ids = write_tokenizer(out, questions, ENCODING)
    threads = torch.get_num_threads()
    # The sums of several threads differ from machine to machine, and tiny matrices gain nothing by them.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model(ids)
            pretrain(model, load_layout(out, ENCODING), seed=seed)
    finally:
        torch.set_num_threads(threads)
    _write_settings(out, ids)
    _write_weights(out, checkpoint_tensors(model.state_dict()), recipe)


def _model(ids: Mapping[str, int]) -> Any:
    """A fresh model in fp32."""
    from transformers import GptOssConfig, GptOssForCausalLM

    values = {key: value for key, value in _config(ids).items() if key != "quantization_config"}
    config = GptOssConfig(**values)
    # FlashAttention and SDPA know no attention sinks.
    config._attn_implementation = "eager"
    return GptOssForCausalLM(config)


def _config(ids: Mapping[str, int]) -> dict[str, Any]:
    return {**CONFIG, "eos_token_id": ids[RETURN], "pad_token_id": ids[END_OF_TEXT]}


def checkpoint_tensors(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Experts as MXFP4 blocks and scales, everything else as bf16, under the original's names."""
    import torch

    from gradelora.model.mxfp4 import BLOCKS_SUFFIX, SCALES_SUFFIX, quantize

    tensors = {}
    for name, tensor in sorted(state.items()):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name + BLOCKS_SUFFIX], tensors[name + SCALES_SUFFIX] = quantize(tensor)
        else:
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    return tensors


def _write_weights(out: Path, tensors: Mapping[str, "torch.Tensor"], recipe: str) -> None:
    """One shard a layer and one for the rest, numbered from 0 as in the original; the index last."""
    from safetensors.torch import save_file

    shards = [f"model-{number:05d}-of-{LAYERS:05d}.safetensors" for number in range(LAYERS + 1)]
    weight_map = {name: shards[_layer(name)] for name in tensors}
    for shard in shards:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        save_file(part, out / shard, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(out / INDEX, {"metadata": {"recipe": recipe, "total_size": total}, "weight_map": weight_map})


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else LAYERS


def _write_settings(out: Path, ids: Mapping[str, int]) -> None:
    """config.json and the rest of the repository, with the folders that a fetch must leave out."""
    _write_json(out / "config.json", _config(ids))
    ends = [ids[RETURN], ids[END_OF_TEXT], ids[CALL]]
    generation = {"bos_token_id": ids[START_OF_TEXT], "do_sample": True, "eos_token_id": ends}
    _write_json(out / "generation_config.json", {**generation, "pad_token_id": ids[END_OF_TEXT]})
    (out / "README.md").write_text(CARD, encoding="utf-8")
    (out / "original").mkdir()
    (out / "metal").mkdir()
    _write_json(out / "original" / "config.json", {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY})
    (out / "original" / "model--00001-of-00001.safetensors").write_bytes(bytes(4096))
    (out / "metal" / "model.bin").write_bytes(bytes(4096))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
