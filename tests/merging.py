"""What the tests of the merge share: checkpoints and adapters as they are saved, and ways to merge them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mxfp4Config,
)

from gradelora.artifacts import (
    Adapter,
    EncodedDataset,
    EvalReport,
    Interval,
    MergedModel,
    ModelSnapshot,
    SplitCounts,
)
from gradelora.config import MergeStageConfig, Runtime
from gradelora.merge import merge
from gradelora.model.mxfp4 import quantize
from tests.conftest import ROOT

RUNTIME = Runtime(threads=1)
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]


def save_llama(folder: Path, **shape: int) -> Path:
    """A dense bf16 checkpoint in one file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
        }
        | shape
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return with_small_files(folder)


def save_gpt_oss(folder: Path, layers: int = 2, hidden: int = 64, experts: int = 4, shards: int = 3) -> Path:
    """gpt-oss as it lies on the Hub: experts in MXFP4, the rest bf16, several shards and an index."""
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_local_experts=experts, num_experts_per_tok=2, sliding_window=32,
        vocab_size=128,
    )  # fmt: skip
    state = {}
    for name, tensor in GptOssForCausalLM(config).to(torch.bfloat16).state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            state[f"{name}_blocks"], state[f"{name}_scales"] = quantize(tensor)
        else:
            state[name] = tensor.contiguous()
    folder.mkdir(parents=True)
    names = sorted(state)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({n: state[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    # A wrong total, as found in the wild: the merge states the true one.
    index = {"metadata": {"total_size": 1, "note": "kept"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    values = config.to_dict() | {
        "architectures": ["GptOssForCausalLM"],
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
        },
    }
    (folder / "config.json").write_text(json.dumps(values))
    return with_small_files(folder)


def with_small_files(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text('{"any": "tokenizer"}')
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("# the base's card")
    return folder


def save_adapter(base: Path, folder: Path, **settings: object) -> Path:
    """A random adapter, saved by PEFT; every factor differs from zero."""
    model = dequantized(base)
    torch.manual_seed(1)
    peft_model = get_peft_model(model, LoraConfig(**({"r": 8, "lora_alpha": 32, "target_modules": QKVO} | settings)))
    for name, parameter in peft_model.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def dequantized(folder: Path) -> torch.nn.Module:
    """The checkpoint in bf16, every key found."""
    quantized = "quantization_config" in json.loads((folder / "config.json").read_text())
    extra = {"quantization_config": Mxfp4Config(dequantize=True)} if quantized else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True, **extra
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def snapshot_of(folder: Path) -> ModelSnapshot:
    return ModelSnapshot.collect(folder, repo_id="owner/tiny", commit="a" * 40)


def adapter_of(folder: Path, **changes: object) -> Adapter:
    facts = {
        "repo_id": "owner/tiny", "commit": "a" * 40,
        "trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 0.0,
    }  # fmt: skip
    return Adapter.collect(folder, **(facts | changes))


def stage_config(**changes: object) -> MergeStageConfig:
    """Without a verification: it needs an evaluation."""
    given = {"device": "cpu", "weights": "packed", "precision": "fp32", "verify_items": 0}
    return MergeStageConfig.model_validate(given | changes)


def nothing_evaluated() -> tuple[EvalReport, EncodedDataset]:
    """What a merge that verifies nothing takes no look at."""
    empty, none = {"path": Path(), "files": ()}, Interval(value=None, low=None, high=None)
    splits = SplitCounts(train=0, validation=0, unseen_answers=0, unseen_questions=0)
    return (
        EvalReport(**empty, split="unseen_answers", items=0, base_qwk=none, adapter_qwk=none, qwk_gain=none),
        EncodedDataset(**empty, layout="", splits=splits, tokens=0, longest=0, pad_token_id=0),
    )


def run(base: Path, adapter: Path, out: Path, threads: int = 1, **changes: object) -> MergedModel:
    out.mkdir(exist_ok=True)
    inputs = snapshot_of(base), adapter_of(adapter), *nothing_evaluated()
    return merge(stage_config(**changes), *inputs, out=out, runtime=Runtime(threads=threads))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def peft_merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(dequantized(base), str(adapter)).merge_and_unload().state_dict()


SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, ModelSnapshot
from gradelora.config import MergeStageConfig, Runtime
from gradelora.merge import merge
kinds = (MergeStageConfig, ModelSnapshot, Adapter, EvalReport, EncodedDataset)
arguments = [kind.model_validate_json(Path(path).read_text()) for kind, path in zip(kinds, sys.argv[2:])]
print("begun", flush=True)
started = time.monotonic()
merged = merge(*arguments, out=Path(sys.argv[1]), runtime=Runtime(threads=1))
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
seconds = time.monotonic() - started
peak_bytes = 1024 * (int(peak) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
told = {"digest": merged.digest, "seconds": seconds, "peak_bytes": peak_bytes, "torch": "torch" in sys.modules}
print(json.dumps(told))
"""


def start(base: Path, adapter: Path, out: Path, **changes: object) -> subprocess.Popen[str]:
    """The merge in a process of its own."""
    out.mkdir(exist_ok=True)
    paths = []
    for artifact in (stage_config(**changes), snapshot_of(base), adapter_of(adapter), *nothing_evaluated()):
        paths.append(out.parent / f"{type(artifact).__name__}.json")
        paths[-1].write_text(artifact.model_dump_json())
    argv = [sys.executable, "-c", SCRIPT, str(out), *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])
