"""The streaming merge beside `cp -r` of the same files, and PEFT's own way on a small model.

    .venv/bin/python bench/bench_merge.py --gb 3 --rounds 3 --peft-gb 0.25

A synthetic gpt-oss in MXFP4 (random weights) is written first: a quarter as wide as gpt-oss-120b, with
its 128 experts and 15 shards, so that LoRA touches the same share of it.  Every contestant runs in a
process of its own and flushes what it wrote; the base is read before each, so that the page cache
is warm for all of them.  A peak is the sum of a process's and its largest child's.  The two first
take turns, so that whatever else the machine does hits both; but a copy is the disk's work and a
merge is hashing and adding too, so processes beside them slow the merge down more.
PEFT's peak is several times the checkpoint, so it is measured on a smaller one.
Nothing is verified by scoring here: random weights have no scores.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPO, COMMIT = "owner/synthetic", "a" * 40
# A quarter of 2880 is no multiple of MXFP4's 32.
HIDDEN, EXPERTS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 704, 128, 16, 2, 64, 8192
SHARDS = 15
LIMIT_RATIO, LIMIT_BYTES, LIMIT_GROWTH_BYTES = 1.3, 400_000_000, 16_000_000
ATTENTION = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}


def layer_tensors(layer: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape), as gpt-oss has them."""
    at, wide = f"model.layers.{layer}.", HEADS * HEAD_DIM
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{at}input_layernorm.weight": ("BF16", (HIDDEN,)),
        f"{at}post_attention_layernorm.weight": ("BF16", (HIDDEN,)),
        f"{at}self_attn.sinks": ("BF16", (HEADS,)),
        f"{at}self_attn.o_proj.weight": ("BF16", (HIDDEN, wide)),
        f"{at}self_attn.o_proj.bias": ("BF16", (HIDDEN,)),
        f"{at}mlp.router.weight": ("BF16", (EXPERTS, HIDDEN)),
        f"{at}mlp.router.bias": ("BF16", (EXPERTS,)),
    }
    for name, width in ATTENTION.items():
        tensors[f"{at}self_attn.{name}.weight"] = ("BF16", (width, HIDDEN))
        tensors[f"{at}self_attn.{name}.bias"] = ("BF16", (width,))
    for name, rows in (("gate_up_proj", 2 * HIDDEN), ("down_proj", HIDDEN)):
        tensors[f"{at}mlp.experts.{name}_blocks"] = ("U8", (EXPERTS, rows, HIDDEN // 32, 16))
        tensors[f"{at}mlp.experts.{name}_scales"] = ("U8", (EXPERTS, rows, HIDDEN // 32))
        tensors[f"{at}mlp.experts.{name}_bias"] = ("BF16", (EXPERTS, rows))
    return tensors


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * {"U8": 1, "BF16": 2, "F32": 4}[dtype]


def random_bytes(name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> bytes:
    """Weights near 0.02; scales near 2**-7, so that nothing overflows."""
    if name.endswith("_scales"):
        return rng.integers(118, 122, shape, dtype=np.uint8).tobytes()
    if dtype == "U8":
        return rng.bytes(size_of(dtype, shape))
    values = rng.standard_normal(int(np.prod(shape)), dtype=np.float32) * 0.02
    return values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], rng: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + size_of(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            file.write(random_bytes(name, dtype, shape, rng))


def write_base(folder: Path, gigabytes: float) -> int:
    """A checkpoint of about that size in about SHARDS shards; returns its layers."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    per_layer = sum(size_of(*spec) for spec in layer_tensors(0).values())
    layers = max(1, round(gigabytes * 1e9 / per_layer))
    groups: list[dict[str, tuple[str, tuple[int, ...]]]] = [
        {"model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN))}
    ]
    for layer in range(layers):
        if sum(size_of(*spec) for spec in groups[-1].values()) > gigabytes * 1e9 / SHARDS - per_layer / 2:
            groups.append({})
        groups[-1] |= layer_tensors(layer)
    groups[-1] |= {"model.norm.weight": ("BF16", (HIDDEN,)), "lm_head.weight": ("BF16", (VOCABULARY, HIDDEN))}
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(folder / name, group, rng)
        weight_map |= dict.fromkeys(group, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model_config(layers)))
    return layers


def model_config(layers: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "vocab_size": VOCABULARY,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    }


def write_adapter(folder: Path, layers: int, r: int = 8) -> None:
    """LoRA on q, k, v and o, as PEFT saves it."""
    folder.mkdir()
    tensors = {}
    for layer in range(layers):
        for name, width in (*ATTENTION.items(), ("o_proj", HIDDEN)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            inner = HEADS * HEAD_DIM if name == "o_proj" else HIDDEN
            tensors[f"{at}.lora_A.weight"] = ("F32", (r, inner))
            tensors[f"{at}.lora_B.weight"] = ("F32", (width, r))
    write_safetensors(folder / "adapter_model.safetensors", tensors, np.random.default_rng(1))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 32, "lora_dropout": 0.05}
    targets = {"target_modules": [*ATTENTION, "o_proj"], "base_model_name_or_path": REPO}
    (folder / "adapter_config.json").write_text(json.dumps(config | targets))


OURS = """
import sys, json
from pathlib import Path
from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, Interval, ModelSnapshot, SplitCounts
from gradelora.config import MergeStageConfig, Runtime
from gradelora.merge import merge
snapshot = ModelSnapshot.model_validate_json(Path(sys.argv[1]).read_text())
adapter = Adapter.model_validate_json(Path(sys.argv[2]).read_text())
nothing, none = {"path": Path(), "files": ()}, Interval(value=None, low=None, high=None)
report = EvalReport(**nothing, split="unseen_answers", items=0, base_qwk=none, adapter_qwk=none, qwk_gain=none)
counts = SplitCounts(train=0, validation=0, unseen_answers=0, unseen_questions=0)
data = EncodedDataset(**nothing, layout="", splits=counts, tokens=0, longest=0, pad_token_id=0)
config = MergeStageConfig(device="cpu", weights="packed", precision="bf16", verify_items=0)
merge(config, snapshot, adapter, report, data, out=Path(sys.argv[3]), runtime=Runtime())
"""
PEFT = """
import sys, json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Mxfp4Config
base, adapter, out = sys.argv[1:]
quantization = Mxfp4Config(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=quantization)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
# Appended to what runs in a process of its own.
USAGE = """
import resource
# Not ru_maxrss for itself: that begins with the size of whoever started it.
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({"peak": 1024 * (int(own) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)}))
"""


def timed(argv: list[str], base: Path, out: Path) -> dict[str, float]:
    """Wall seconds until all of `out` is on the disk, CPU seconds, and the peak that the process tells."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    for path in base.iterdir():
        with path.open("rb") as file:
            while file.read(2**22):
                pass
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    for path in [p for p in out.rglob("*") if p.is_file()]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = json.loads(output.splitlines()[-1])["peak"] if output else 0.0
    written = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return {"seconds": seconds, "bytes": written, "cpu": cpu, "peak": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gb", type=float, default=3.0, help="size of the synthetic checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over these")
    parser.add_argument("--peft-gb", type=float, default=0.25, help="size of the model that PEFT merges, 0 for none")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        whole = compare(Path(name) / "whole", options.gb, options.rounds)
        held = whole["ratio"] <= LIMIT_RATIO and whole["peak"] <= LIMIT_BYTES
        told = {True: "held", False: "missed"}
        print(f"aim: at most {LIMIT_RATIO} x cp and {LIMIT_BYTES / 1e6:.0f} MB: {told[held]}\n", flush=True)
        if options.gb > 1:
            # The same at a third of the size: memory must not follow it.
            growth = whole["peak"] - compare(Path(name) / "small", options.gb / 3, options.rounds)["peak"]
            flat = growth <= LIMIT_GROWTH_BYTES
            held = held and flat
            limit = f"{LIMIT_GROWTH_BYTES / 1e6:.0f} MB"
            print(f"aim: at most {limit} more for three times the size: {told[flat]}, {growth / 1e6:+.0f} MB\n")
        if options.peft_gb:
            compare(Path(name) / "peft", options.peft_gb, 1, peft=True)
    return 0 if held else 1


def compare(work: Path, gigabytes: float, rounds: int, *, peft: bool = False) -> dict[str, float]:
    """Write a model of that size, let the contestants take turns on it, print what they took; ours to be judged."""
    from gradelora.artifacts import Adapter, ModelSnapshot

    work.mkdir()
    layers = write_base(work / "base", gigabytes)
    write_adapter(work / "adapter", layers)
    snapshot = ModelSnapshot.collect(work / "base", repo_id=REPO, commit=COMMIT)
    facts = {"trainable_parameters": 1, "total_parameters": 1, "steps": 1, "final_loss": 0.0}
    adapter = Adapter.collect(work / "adapter", repo_id=REPO, commit=COMMIT, **facts)
    (work / "s.json").write_text(snapshot.model_dump_json())
    (work / "a.json").write_text(adapter.model_dump_json())
    out, python = work / "out", sys.executable
    contestants = {
        "cp -r": ["cp", "-r", str(work / "base"), str(out)],
        "gradelora": [python, "-c", OURS + USAGE, str(work / "s.json"), str(work / "a.json"), str(out)],
    }
    if peft:
        contestants["PEFT"] = [python, "-c", PEFT + USAGE, str(work / "base"), str(work / "adapter"), str(out)]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, argv in contestants.items():
            results[name].append(timed(argv, work / "base", out))
    shutil.rmtree(work)
    return report(snapshot.total_bytes, layers, results)


def report(size: int, layers: int, results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians, and the ratio to the plain copy of the same round: others use the machine in other rounds."""
    middle = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in results.items()}
    load, rounds = os.getloadavg()[0], len(results["cp -r"])
    print(f"{size / 1e9:.2f} GB in MXFP4, {layers} layers, {os.cpu_count()} cores, load {load:.1f}, median of {rounds}")
    print(f"{'':12}{'seconds':>9}{'x cp':>7}{'CPU s':>8}{'peak MB':>9}{'written GB':>12}")
    for name, row in middle.items():
        pairs = zip(results[name], results["cp -r"], strict=True)
        row["ratio"] = ratio = statistics.median(ours["seconds"] / copy["seconds"] for ours, copy in pairs)
        peak, written = row["peak"] / 1e6, row["bytes"] / 1e9
        print(f"{name:12}{row['seconds']:9.2f}{ratio:7.2f}{row['cpu']:8.2f}{peak:9.0f}{written:12.2f}")
    print(flush=True)
    return middle["gradelora"]


if __name__ == "__main__":
    sys.exit(main())
