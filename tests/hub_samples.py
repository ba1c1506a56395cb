"""A repository in the layout of gpt-oss, a few hundred kilobytes, for the tests that need a Hub."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gradelora.artifacts import BaseModel, ModelSnapshot, RemoteFile, sha256_file
from gradelora.config import BaseModelConfig, FetchConfig, Runtime
from gradelora.fetch import fetch
from gradelora.resolve import resolve
from gradelora.sandbox.hub import LoopbackHub

REPO = "openai/tiny-oss"
BIG = "big/model"
MIB = 2**20
SHARDS = ("model-00000-of-00001.safetensors", "model-00001-of-00001.safetensors")


def write_repository(root: Path, rows: int = 64) -> Path:
    """Two shards with an index, tokenizer and config, and what must be left out."""
    folder = root / REPO
    for name in (".", "original", "metal"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shards = [
        {
            "embed": rng.standard_normal((rows, 512)).astype(np.float32),
            "blocks": rng.integers(0, 255, (4, 90, 16), np.uint8),
        },
        {"head": rng.standard_normal((rows, 512)).astype(np.float16)},
    ]
    for name, tensors in zip(SHARDS, shards, strict=True):
        save_file(tensors, folder / name)
    weight_map = {t: name for name, tensors in zip(SHARDS, shards, strict=True) for t in tensors}
    total = sum(t.nbytes for tensors in shards for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]})
    write_json(folder / "generation_config.json", {"eos_token_id": 1})
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "tokenizer_config.json", {})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("Apache-2.0")
    (folder / "README.md").write_text("# tiny")
    save_file(shards[0], folder / "original" / "model.safetensors")
    (folder / "metal" / "model.bin").write_bytes(b"metal" * 1000)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "model.Q4.gguf").write_bytes(b"GGUF")
    return folder


def write_json(path: Path, value: object) -> None:
    """One JSON file."""
    path.write_text(json.dumps(value))


def runtime_for(hub: LoopbackHub, cache: Path, retries: int = 3) -> Runtime:
    """Talk to `hub`, keep its files in `cache`."""
    return Runtime(hub_endpoint=hub.url, hub_cache=cache, hub_retries=retries, hub_timeout_s=5)


def resolved(runtime: Runtime, revision: str = "main", repo_id: str = REPO) -> BaseModel:
    """What `resolve` says of the sample."""
    return resolve(BaseModelConfig(repo_id=repo_id, revision=revision), runtime=runtime)


def fetched(runtime: Runtime, base: BaseModel, out: Path, part: str = "everything") -> ModelSnapshot:
    """What `fetch` brings of it."""
    return fetch(FetchConfig.model_validate({"part": part}), base, out=out, runtime=runtime)


def write_big(root: Path, size: int = 24 * MIB + 12345) -> None:
    """A model of one file, of about `size` bytes."""
    folder = root / BIG
    folder.mkdir(parents=True)
    save_file({"w": np.random.default_rng(0).integers(0, 255, size, np.uint8)}, folder / "model.safetensors")
    write_json(folder / "config.json", {})


def shard(base: BaseModel) -> RemoteFile:
    """Its one large file."""
    return next(f for f in base.remote_files if f.sha256)


def is_right(snapshot: ModelSnapshot, base: BaseModel) -> bool:
    """Whether its bytes are those that the Hub announced."""
    return sha256_file(snapshot.path / shard(base).name) == shard(base).sha256


CHILD = """
import sys
from gradelora.artifacts import BaseModel
from gradelora.config import Runtime
from pathlib import Path
from tests.hub_samples import fetched
base, runtime = (t.model_validate_json(Path(p).read_text()) for t, p in zip((BaseModel, Runtime), sys.argv[1:3]))
print(fetched(runtime, base, Path(sys.argv[3])).digest, flush=True)
"""


def start(runtime: Runtime, base: BaseModel, tmp_path: Path) -> subprocess.Popen[str]:
    """A fetch in a process of its own."""
    (tmp_path / "base.json").write_text(base.model_dump_json())
    (tmp_path / "runtime.json").write_text(runtime.model_dump_json())
    argv = [sys.executable, "-c", CHILD, *map(str, (tmp_path / "base.json", tmp_path / "runtime.json", tmp_path))]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for_bytes(hub: LoopbackHub, count: int, seconds: float = 15) -> None:
    """Until the CDN has sent so many."""
    until = time.monotonic() + seconds
    while hub.sent(server="cdn") < count and time.monotonic() < until:
        time.sleep(0.01)
