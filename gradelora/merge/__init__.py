"""merge: the adapter added to the base's weights, in the base's own format.

Only the weights that LoRA touches are rewritten; everything else, MXFP4 experts included, is
copied byte for byte.  Memory is that of one weight, whatever the model's size.
"""

import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gradelora.artifacts import ASIDE, Adapter, FileEntry, MergedModel, ModelSnapshot, sha256_text
from gradelora.config import MergeConfig, Runtime
from gradelora.errors import Damaged, NotEnoughDisk, UnsupportedModel
from gradelora.merge.checkpoint import INDEX, Shard, index_text, read_checkpoint
from gradelora.merge.sealing import Journal, Merge, entry_of, seal_shard, write_durably
from gradelora.merge.targets import ADAPTER_WEIGHTS, Target, read_targets, refuse_tied
from gradelora.store import fsync

if TYPE_CHECKING:
    from gradelora.merge.arithmetic import Arithmetic

VERSION = 1
RESUMES = True
CONFIG = "config.json"
JOURNAL = "sealed.jsonl"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# The base's card describes the base; the folders hold it in other formats.
LEFT_OUT = ("README.md", ".gitattributes", INDEX, CONFIG)
LEFT_OUT_FOLDERS = ("original", "metal")
# Two shards are hashed while one is copied and the disk writes; small ones wait for torch together.
FEWEST_AT_ONCE, MOST_AT_ONCE, BYTES_AT_ONCE = 3, 8, 4 * 10**9


def merge(
    config: MergeConfig,  # noqa: ARG001
    snapshot: ModelSnapshot,
    adapter: Adapter,
    *,
    out: Path,
    runtime: Runtime,
) -> MergedModel:
    """A checkpoint like `snapshot` whose targeted weights hold the adapter, resumed by shard.

    `out` cannot be loaded before its end: config.json is written last, after every shard was
    read back, compared with the base (or with the sum made anew) and flushed.
    Raises UnsupportedModel for what cannot be merged exactly, KeyMismatch for an adapter tensor
    without a weight, NotEnoughDisk, Damaged.
    """
    if (adapter.repo_id, adapter.commit) != (snapshot.repo_id, snapshot.commit):
        raise UnsupportedModel(
            f"the adapter was trained on {adapter.repo_id}@{adapter.commit}, the base is "
            f"{snapshot.repo_id}@{snapshot.commit}; merge it into the base that it was trained on"
        )
    shards = read_checkpoint(snapshot.path)
    if not (snapshot.path / CONFIG).exists():
        raise UnsupportedModel(f"{snapshot.path}: has no {CONFIG}; fetch the base model again")
    targets = read_targets(adapter.path, shards)
    refuse_tied(targets, snapshot.path)
    (out / CONFIG).unlink(missing_ok=True)
    (out / ASIDE).mkdir(parents=True, exist_ok=True)
    journal = Journal(out / ASIDE / JOURNAL, sha256_text(f"{VERSION} {snapshot.digest} {adapter.digest}"))
    _check_disk(out, [shard for shard in shards if not journal.sealed(out, shard)])
    files = _write_shards(snapshot.path, adapter.path / ADAPTER_WEIGHTS, out, shards, targets, journal, runtime)
    files += _write_rest(snapshot, out, shards)
    return MergedModel(
        path=out,
        files=tuple(sorted(files, key=lambda f: f.name)),
        repo_id=snapshot.repo_id,
        commit=snapshot.commit,
        merged_tensors=len(targets),
    )


def _check_disk(out: Path, missing: list[Shard]) -> None:
    """Raise NotEnoughDisk before a byte is written that could not be followed by the last one."""
    needed = sum(shard.size for shard in missing)
    needed -= sum((out / f"{s.name}.part").stat().st_size for s in missing if (out / f"{s.name}.part").exists())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for the merged model; "
            "free space, set store.root to a larger file system, or merge.enabled=false"
        )


def _write_shards(
    source: Path,
    adapter: Path,
    out: Path,
    shards: tuple[Shard, ...],
    targets: Mapping[str, Target],
    journal: Journal,
    runtime: Runtime,
) -> list[FileEntry]:
    """Seal every shard that is not yet sealed; the first failure stops the rest."""
    turn = threading.Lock()
    workers = min(MOST_AT_ONCE, max(FEWEST_AT_ONCE, BYTES_AT_ONCE // max(shard.size for shard in shards)))

    def one_at_a_time(target: Target, base: int, factors: int, use: Callable[[memoryview], bytes]) -> bytes:
        arithmetic = loaded.result()
        with turn:
            return use(arithmetic.merged_bytes(target, base, factors))

    with (
        ThreadPoolExecutor(1) as loader,
        ThreadPoolExecutor(workers) as flusher,
        ThreadPoolExecutor(workers) as pool,
    ):
        # torch takes seconds to import; meanwhile the workers copy, and the disk writes.
        loaded = loader.submit(_arithmetic, runtime.threads or 1)
        waiting = [
            pool.submit(_sealed, source, adapter, out, shard, targets, journal, one_at_a_time, flusher)
            for shard in shards
        ]
        try:
            return [each.result() for each in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _arithmetic(threads: int) -> "Arithmetic":
    """Who adds: imports torch, so that a merge that has nothing left to add does not wait for it."""
    from gradelora.merge.arithmetic import Arithmetic

    return Arithmetic(threads)


def _sealed(
    source: Path,
    adapter: Path,
    out: Path,
    shard: Shard,
    targets: Mapping[str, Target],
    journal: Journal,
    merge: Merge,
    flusher: Executor,
) -> FileEntry:
    entry = journal.sealed(out, shard)
    if entry is None:
        entry = seal_shard(source, adapter, out, shard, targets, merge, flusher)
        journal.add(entry)
        print(f"merge: sealed {shard.name} ({shard.size / 1e9:.2f} GB)", flush=True)
    else:
        print(f"merge: kept {shard.name}, sealed by an earlier attempt", flush=True)
    return entry_of(entry, out / shard.name)


def _write_rest(snapshot: ModelSnapshot, out: Path, shards: tuple[Shard, ...]) -> list[FileEntry]:
    """Index, tokenizer and the other small files; config.json last.  Raises Damaged, UnsupportedModel."""
    index = index_text(snapshot.path, shards)
    names = [entry.name for entry in snapshot.files if _is_copied(entry.name)]
    if index is not None:
        write_durably(out / INDEX, index)
    if read_checkpoint(out) != shards:
        raise Damaged(f"{out}: its headers differ from the base's; delete the folder and merge again")
    for name in [*names, CONFIG]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        part = out / f"{name}.part"
        shutil.copyfile(snapshot.path / name, part)
        fsync(part)
        part.replace(out / name)
    fsync(out)
    written = [*names, CONFIG, *([INDEX] if index is not None else [])]
    return [FileEntry.of(out / name, name) for name in written]


def _is_copied(name: str) -> bool:
    """Whether a file of the base belongs to the merged model as it is."""
    path = PurePosixPath(name)
    return name not in LEFT_OUT and path.suffix not in WEIGHT_SUFFIXES and path.parts[0] not in LEFT_OUT_FOLDERS
