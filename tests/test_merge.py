"""The streaming merge against PEFT's own, on a dense bf16 Llama and on a gpt-oss in MXFP4."""

import ctypes
import errno
import hashlib
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

import gradelora.merge
from gradelora.artifacts import (
    FileEntry,
    files_under,
    sha256_text,
)
from gradelora.errors import Damaged, KeyMismatch, NotEnoughDisk, UnsupportedModel
from gradelora.merge import blocks, merge
from gradelora.merge.checkpoint import read_checkpoint
from gradelora.merge.targets import read_targets
from gradelora.model.adapter import load_adapter
from gradelora.model.load import load_base
from tests.merging import (
    QKVO,
    RUNTIME,
    adapter_of,
    dequantized,
    finish,
    nothing_evaluated,
    peft_merged,
    run,
    save_adapter,
    save_gpt_oss,
    save_llama,
    snapshot_of,
    stage_config,
    start,
    tensors,
)

SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 4, "layers.1.self_attn.k_proj": 2},
        "alpha_pattern": {"self_attn.v_proj": 3},
    },
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt_oss(tmp_path_factory.mktemp("gpt_oss") / "base")


@pytest.fixture(scope="module")
def plain(gpt_oss: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(gpt_oss, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("kind", SETTINGS)
def test_merged_weights_equal_pefts_bit_for_bit_on_a_dense_model(llama: Path, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", **SETTINGS[kind])
    run(llama, adapter, tmp_path / "out")
    ours, theirs = tensors(tmp_path / "out"), peft_merged(llama, adapter)
    base = tensors(llama)
    assert ours.keys() == base.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert torch.equal(tensor, base[name]) != name.endswith(tuple(f"{m}.weight" for m in QKVO)), name


@pytest.mark.parametrize("kind", SETTINGS)
def test_merged_weights_equal_pefts_bit_for_bit_on_mxfp4(gpt_oss: Path, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(gpt_oss, tmp_path / "adapter", **SETTINGS[kind])
    result = run(gpt_oss, adapter, tmp_path / "out")
    ours, theirs = dequantized(tmp_path / "out").state_dict(), peft_merged(gpt_oss, adapter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert result.merged_tensors == 8


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attention of gpt-oss-120b: 64 heads of 64 and 8 of keys over 2880."""
    shape = {"hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 1}
    return save_llama(tmp_path_factory.mktemp("wide") / "base", head_dim=64, **shape)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_at_full_width_with_factors_in_bf16_the_bits_are_pefts_on_any_number_of_threads(
    wide: Path, tmp_path: Path, threads: int
) -> None:
    """As zero2 trains in bf16: DeepSpeed casts the factors and so they are saved."""
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 3}}
    adapter = save_adapter(wide, tmp_path / "adapter", use_rslora=True, **patterns)
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t.bfloat16() for n, t in factors.items()}, adapter / "adapter_model.safetensors")
    run(wide, adapter, tmp_path / "out", threads=threads)
    ours, theirs = tensors(tmp_path / "out"), peft_merged(wide, adapter)
    assert ours["model.layers.0.self_attn.q_proj.weight"].shape == (4096, 2880)
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize("base", ["llama", "gpt_oss"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_dora_is_within_one_bf16_step_of_pefts(
    base: str, use_rslora: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    adapter = save_adapter(folder, tmp_path / "adapter", use_dora=True, use_rslora=use_rslora)
    run(folder, adapter, tmp_path / "out")
    ours, theirs = tensors(tmp_path / "out"), peft_merged(folder, adapter)
    for name in ours.keys() & theirs.keys():
        steps = (ours[name].view(torch.int16).int() - theirs[name].view(torch.int16).int()).abs().max()
        assert steps <= 1, name


def test_everything_that_lora_does_not_touch_is_the_bases_bytes(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    run(gpt_oss, plain, tmp_path / "out")
    touched = {f"model.layers.{i}.self_attn.{m}.weight" for i in range(2) for m in QKVO}
    for shard in read_checkpoint(gpt_oss):
        old, new = (gpt_oss / shard.name).read_bytes(), (tmp_path / "out" / shard.name).read_bytes()
        start = shard.tensors[0].start
        assert old[:start] == new[:start]
        for tensor in shard.tensors:
            same = old[tensor.start : tensor.end] == new[tensor.start : tensor.end]
            assert same != (tensor.name in touched), tensor.name


def test_the_folder_holds_config_tokenizer_and_a_true_index(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    result = run(gpt_oss, plain, tmp_path / "out")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (gpt_oss / name).read_bytes()
    assert not (tmp_path / "out" / "README.md").exists()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"note": "kept", "total_size": sum(t.nbytes for t in tensors(gpt_oss).values())}
    assert index["weight_map"].keys() == tensors(gpt_oss).keys()
    expected = {f.name: (f.size, f.sha256) for f in files_under(tmp_path / "out") if not f.name.startswith("aside/")}
    assert {f.name: (f.size, f.sha256) for f in result.files} == expected


def test_the_base_is_never_modified(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    before = files_under(gpt_oss)
    run(gpt_oss, plain, tmp_path / "out")
    assert files_under(gpt_oss) == before


@pytest.mark.slow
def test_merged_scores_are_those_of_base_and_adapter(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    run(gpt_oss, plain, tmp_path / "out")
    ids = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        merged = dequantized(tmp_path / "out").float()(ids).logits
        adapted = PeftModel.from_pretrained(dequantized(gpt_oss).float(), str(plain))(ids).logits
        base = dequantized(gpt_oss).float()(ids).logits
    # One rounding of the sum to bf16 is all that lies between them; the adapter itself moves far more.
    assert (merged - adapted).abs().max() < 0.05 * (base - adapted).abs().max()


def test_the_merged_checkpoint_loads_packed_and_scores_as_base_and_adapter(
    gpt_oss: Path, plain: Path, tmp_path: Path
) -> None:
    run(gpt_oss, plain, tmp_path / "out")
    ids = torch.arange(60).reshape(2, 30)

    def packed(folder: Path) -> torch.nn.Module:
        return load_base(folder, weights="packed", precision="fp32", device="cpu")

    with torch.no_grad():
        merged, base = packed(tmp_path / "out")(ids).logits, packed(gpt_oss)(ids).logits
        adapted = load_adapter(packed(gpt_oss), plain).eval()(ids).logits
    assert (merged - adapted).abs().max() < 0.05 * (base - adapted).abs().max()


def test_the_tutorials_way_of_merging_loses_the_experts(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    PeftModel.from_pretrained(dequantized(gpt_oss), str(plain)).merge_and_unload().save_pretrained(
        tmp_path / "tutorial"
    )
    _, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tutorial", dtype=torch.bfloat16, output_loading_info=True
    )
    assert [name for name in info["missing_keys"] if "experts" in name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fan_in_fan_out": True}, "transposed"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "bias"),
        ({"init_lora_weights": "pissa"}, "initialisation"),
        ({"init_lora_weights": "loftq"}, "initialisation"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"a_setting_of_tomorrow": True}, "not known"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused_with_the_reason(
    gpt_oss: Path, plain: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    adapter = shutil.copytree(plain, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel, match=reason):
        run(gpt_oss, adapter, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    config = json.loads((base / "config.json").read_text())
    run(base, adapter, tmp_path / "untied")
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UnsupportedModel, match="tied"):
        run(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "base_model.model.model.norm.weight"]
)
def test_an_adapter_tensor_without_a_weight_is_an_error(gpt_oss: Path, plain: Path, tmp_path: Path, name: str) -> None:
    adapter = shutil.copytree(plain, tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    save_file(held | {name: torch.zeros(8, 64)}, adapter / "adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match=name.split(".")[3]):
        run(gpt_oss, adapter, tmp_path / "out")


def test_an_adapter_of_another_commit_is_refused(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    other = adapter_of(plain, commit="b" * 40)
    with pytest.raises(UnsupportedModel, match="trained on"):
        merge(stage_config(), snapshot_of(gpt_oss), other, *nothing_evaluated(), out=tmp_path, runtime=RUNTIME)


def test_a_truncated_base_is_refused(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    base = shutil.copytree(gpt_oss, tmp_path / "base")
    shard = next(base.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(Damaged, match=shard.name):
        run(base, plain, tmp_path / "out")


def test_a_full_disk_is_refused_before_a_byte_is_written(
    gpt_oss: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(NotEnoughDisk, match="needed"):
        run(gpt_oss, plain, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


@pytest.mark.parametrize("where", ["fallocate", "fsync"])
def test_a_disk_or_quota_that_fills_meanwhile_is_told_with_the_remedy(
    gpt_oss: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> int:
        ctypes.set_errno(errno.EDQUOT)
        if where == "fallocate":
            return -1
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patched:
        patched.setattr(*((blocks._libc, "fallocate", full) if where == "fallocate" else (os, "fsync", full)))
        with pytest.raises(NotEnoughDisk, match=r"quota exceeded.*set store\.root"):
            run(gpt_oss, plain, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_shards_that_lie_there_are_read_instead_of_written_and_mended_where_they_differ(
    gpt_oss: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes the journal's lines; something else touches a sealed shard."""
    whole, out = run(gpt_oss, plain, tmp_path / "out"), tmp_path / "out"
    first, second, _ = sorted(out.glob("*.safetensors"))
    journal = out / "aside" / "sealed.jsonl"
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if first.name not in line))
    inode = first.stat().st_ino
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        assert run(gpt_oss, plain, out).digest == whole.digest
    assert first.stat().st_ino == inode
    data = second.read_bytes()
    second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run(gpt_oss, plain, out).digest == whole.digest
    assert second.read_bytes() == data


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing_and_repeat_no_sealed_shard(tmp_path: Path) -> None:
    """Half of them anywhere in the time that a run takes, half just after a shard with a merged weight was sealed."""
    base = save_gpt_oss(tmp_path / "base", layers=4, hidden=512, experts=16, shards=12)
    adapter = save_adapter(base, tmp_path / "adapter")
    targeted = {target.weight.file for target in read_targets(adapter, read_checkpoint(base)).linear}
    seconds = finish(start(base, adapter, tmp_path / "whole"))["seconds"]
    whole = hashes(tmp_path / "whole")
    chance, kills, partly, episode = random.Random(7), 0, 0, 0
    while kills < 10:
        out, sealed = tmp_path / f"out{episode}", {}
        while kills < 10 and len(sealed) < 12:
            process = start(base, adapter, out)
            if kills % 2:
                next((line for line in process.stdout if any(f"sealed {n}" in line for n in targeted)), None)
                time.sleep(chance.uniform(0, 0.02))
            else:
                process.stdout.readline()
                time.sleep(chance.uniform(0, 1) * seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            now = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.safetensors")}
            assert {n: now.get(n) for n in sealed} == sealed
            sealed = now
            partly += bool(targeted & sealed.keys()) and len(sealed) < 12
            if not (out / "config.json").exists():
                with pytest.raises((OSError, ValueError), match=r"config\.json"):
                    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
        finish(start(base, adapter, out))
        assert hashes(out) == whole
        now = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.safetensors")}
        assert {n: now[n] for n in sealed} == sealed
        episode += 1
    assert partly >= 3, "too few kills fell among the shards"


def hashes(folder: Path) -> dict[str, str]:
    """Of every file as it lies there, read anew."""
    return {entry.name: entry.sha256 for entry in files_under(folder)}


def test_a_run_goes_on_behind_the_sealed_shards(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    first = run(gpt_oss, plain, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    (tmp_path / "out" / names[1]).unlink()
    (tmp_path / "out" / f"{names[1]}.part").write_bytes(b"half")
    inodes = {n: (tmp_path / "out" / n).stat().st_ino for n in (names[0], names[2])}
    assert run(gpt_oss, plain, tmp_path / "out").digest == first.digest
    assert {n: (tmp_path / "out" / n).stat().st_ino for n in inodes} == inodes
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_shard_that_cannot_be_flushed_does_not_count(
    gpt_oss: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, flush = read_checkpoint(gpt_oss)[0], os.fsync

    def failing(file: int) -> None:
        if os.fstat(file).st_size == shard.size:
            raise OSError(errno.EIO, "the disk is broken")
        flush(file)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="broken"):
        run(gpt_oss, plain, tmp_path / "out")
    assert not (tmp_path / "out" / shard.name).exists()


@pytest.mark.slow
def test_attention_is_merged_without_the_import_of_torch(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    alone = finish(start(gpt_oss, plain, tmp_path / "apart"))
    assert alone["digest"] == run(gpt_oss, plain, tmp_path / "here").digest
    assert not alone["torch"]


@pytest.mark.parametrize("factor", [math.inf, math.nan, 1e25])
def test_a_sum_that_is_no_number_is_refused(gpt_oss: Path, plain: Path, tmp_path: Path, factor: float) -> None:
    held = load_file(plain / "adapter_model.safetensors")
    broken = shutil.copytree(plain, tmp_path / "broken")
    save_file({n: t * factor for n, t in held.items()}, broken / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModel, match="not finite after the merge"):
        run(gpt_oss, broken, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_another_adapters_shards_are_not_taken_for_sealed(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    other = save_adapter(gpt_oss, tmp_path / "other", r=4)
    run(gpt_oss, other, tmp_path / "out")
    expected = run(gpt_oss, plain, tmp_path / "clean")
    assert run(gpt_oss, plain, tmp_path / "out").digest == expected.digest


@pytest.mark.slow
def test_memory_grows_neither_with_the_model_nor_with_its_weights(wide: Path, tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 8):
        base = save_gpt_oss(tmp_path / f"base{layers}", layers=layers, hidden=512, experts=16)
        adapter = save_adapter(base, tmp_path / f"adapter{layers}")
        peaks.append(finish(start(base, adapter, tmp_path / f"out{layers}"))["peak_bytes"])
    assert peaks[1] < peaks[0] + 16 * 2**20
    adapter = save_adapter(wide, tmp_path / "wide_adapter")
    peak = finish(start(wide, adapter, tmp_path / "wide_out"))["peak_bytes"]
    assert peak < peaks[0] + 48 * 2**20, "a weight of 4096 x 2880 is 24 MB, its update 47 MB"


def test_the_digest_does_not_depend_on_file_times(gpt_oss: Path, plain: Path, tmp_path: Path) -> None:
    first = run(gpt_oss, plain, tmp_path / "a")
    second = run(shutil.copytree(gpt_oss, tmp_path / "elsewhere", copy_function=shutil.copy), plain, tmp_path / "b")
    assert first.digest == second.digest
    assert hashlib.sha256((tmp_path / "a" / first.files[0].name).read_bytes()).hexdigest() == first.files[0].sha256
    assert all(isinstance(f, FileEntry) for f in first.files)


@pytest.mark.parametrize(("dtype", "digest"), [("base", "4ef9a43c0c94d1ef"), ("bf16", "d48a38b1ac510bc4")])
def test_the_same_model_gives_the_same_artifact_as_long_as_version_stays(
    tmp_path: Path, dtype: str, digest: str
) -> None:
    """Another digest means another output: bump VERSION of merge, then write the new digest here.

    The weights are small integers, so that their sums are exact on every processor.
    """
    base = save_gpt_oss(tmp_path / "base")
    for shard in sorted(base.glob("*.safetensors")):
        held = load_file(shard)
        save_file({n: steps(n, t) for n, t in held.items()}, shard, metadata={"format": "pt"})
    adapter = save_adapter(base, tmp_path / "adapter", target_parameters=["experts.down_proj"])
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: steps(n, t) for n, t in factors.items()}, adapter / "adapter_model.safetensors")
    result = run(base, adapter, tmp_path / "out", dtype=dtype, min_delta_survival=-1)
    names = ("delta_survival.jsonl", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
    contents = [(f.name, f.sha256) for f in result.files if f.name in names]
    assert (gradelora.merge.VERSION, sha256_text(str(contents))[:16]) == (2, digest)


def steps(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same small numbers for a name on every machine; MXFP4 scales near 2 ** -3."""
    start = sum(map(ord, name))
    counted = torch.arange(start, start + tensor.numel()).reshape(tensor.shape) * 7919
    if name.endswith("_scales"):
        return (counted % 3 + 123).to(torch.uint8)
    return (counted % 251).to(torch.uint8) if name.endswith("_blocks") else ((counted % 13 - 6) / 8).to(tensor.dtype)
