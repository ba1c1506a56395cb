"""Pin the base model to one commit and read what it consists of: kilobytes, no weights.

Never cached: a branch moves.  The artifact's digest is its commit's, so nothing runs again
while the branch stays.  Offline it is read from the Hub cache.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gradelora.artifacts import BaseModel, RemoteFile, TensorInfo
from gradelora.config import BaseModelConfig, Runtime
from gradelora.errors import NotCached, UnsupportedModel
from gradelora.hub import HubClient, Listing
from gradelora.hub.names import CONFIG, INDEX, SINGLE, is_small_file, refuse_escapes

VERSION = 1
THREADS = 4
# A shard's header of gpt-oss-120b has some 6 kB: one request is enough for nearly every file.
FIRST_BYTES = 32 * 1024
# The format's own limit (safetensors, tensor.rs: MAX_HEADER_SIZE).
LONGEST_HEADER_BYTES = 100_000_000

Read = Callable[[str, int, int], bytes]


def resolve(config: BaseModelConfig, *, runtime: Runtime) -> BaseModel:
    """The commit that `config.revision` names now, its files and its tensors.

    Raises RepoNotFound, RevisionNotFound, GatedRepo, HubUnavailable, NotCached, and
    UnsupportedModel where the index, the headers and the files do not explain each other.
    """
    client = HubClient(runtime)
    listing, read = _cached(client, config) if client.offline else _online(client, config)
    refuse_escapes(config.repo_id, (f.name for f in listing.files))
    files = {f.name: f for f in listing.files}
    where = f"{config.repo_id} at {listing.commit[:12]}"
    config_json = _text(where, files, CONFIG, read)
    if not isinstance(_parsed(where, CONFIG, config_json), dict):
        raise UnsupportedModel(f"{where}: config.json is no JSON object")
    index = _parsed(where, INDEX, _text(where, files, INDEX, read)) if INDEX in files else None
    shards = _shards(where, files, index)
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(lambda name: _tensors(where, files[name], read), shards))
    tensors = tuple(sorted((t for header in headers for t in header), key=lambda t: t.name))
    _explained(where, tensors, index)
    return BaseModel(
        path=Path(),
        files=(),
        repo_id=config.repo_id,
        commit=listing.commit,
        config_json=config_json,
        remote_files=tuple(f for f in listing.files if f.name in shards or is_small_file(f.name)),
        tensors=tensors,
    )


def _online(client: HubClient, config: BaseModelConfig) -> tuple[Listing, Read]:
    listing = client.listing(config.repo_id, config.revision)
    try:
        client.repo_cache(config.repo_id).note_commit(config.revision, listing.commit)
    except OSError as error:
        print(f"resolve: {client.cache}: {error.strerror}; offline runs will not find {config.revision} there")
    return listing, lambda name, start, stop: client.read(config.repo_id, listing.commit, name, start, stop)


def _cached(client: HubClient, config: BaseModelConfig) -> tuple[Listing, Read]:
    """The same from the cache's own listing and snapshot.  Raises NotCached."""
    cache = client.repo_cache(config.repo_id)
    commit = cache.commit_of(config.revision)
    tree = cache.tree(commit) if commit else None
    if commit is None or tree is None:
        raise NotCached(
            f"{config.repo_id} at {config.revision}: not in {client.cache}, and HF_HUB_OFFLINE is set;"
            " unset it or fetch the model first"
        )

    def read(name: str, start: int, stop: int) -> bytes:
        path = cache.snapshot(commit) / name
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise NotCached(f"{path}: not there, and HF_HUB_OFFLINE is set; unset it and fetch the model") from error

    return Listing(commit, tree), read


def _text(where: str, files: dict[str, RemoteFile], name: str, read: Read) -> str:
    """A small file as text."""
    if name not in files:
        raise UnsupportedModel(f"{where}: holds no {name}; set base.repo_id to a transformers checkpoint")
    try:
        return read(name, 0, files[name].size).decode() if files[name].size else ""
    except UnicodeDecodeError as error:
        raise UnsupportedModel(f"{where}: {name} is no UTF-8 text") from error


def _parsed(where: str, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnsupportedModel(f"{where}: {name} is no JSON ({error})") from error


def _shards(where: str, files: dict[str, RemoteFile], index: Any) -> list[str]:
    """The weight files, as the index names them; else the single file."""
    if index is None:
        if SINGLE not in files:
            raise UnsupportedModel(f"{where}: holds neither {SINGLE} nor {INDEX}; only safetensors weights are used")
        return [SINGLE]
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
        raise UnsupportedModel(f"{where}: {INDEX} has no weight_map")
    names = sorted({str(name) for name in index["weight_map"].values()})
    refuse_escapes(where, names)
    for name in names:
        if "/" in name or not name.endswith(".safetensors") or name not in files:
            raise UnsupportedModel(
                f"{where}: {INDEX} names {name}, which is no safetensors file of the repository's root"
            )
    return names


def _tensors(where: str, file: RemoteFile, read: Read) -> list[TensorInfo]:
    """One shard's tensors from its header: 8 bytes length (little-endian), JSON, data.

    Raises UnsupportedModel where the header does not account for every byte of the file.
    """
    first = read(file.name, 0, min(FIRST_BYTES, file.size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > min(LONGEST_HEADER_BYTES, file.size - 8):
        raise UnsupportedModel(f"{where}: {file.name} has no safetensors header")
    header = first[8 : 8 + length]
    if len(header) < length:
        header += read(file.name, len(first), 8 + length)
    entries = _parsed(where, file.name, header.decode(errors="replace"))
    try:
        tensors = [_tensor(name, file.name, entry) for name, entry in entries.items() if name != "__metadata__"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{where}: {file.name} has a malformed safetensors header") from error
    explained = 8 + length + sum(t.nbytes for t in tensors)
    if explained != file.size:
        raise UnsupportedModel(f"{where}: {file.name} has {file.size} bytes, its header explains {explained}")
    return tensors


def _tensor(name: str, file: str, entry: Any) -> TensorInfo:
    start, stop = entry["data_offsets"]
    return TensorInfo(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), file=file, nbytes=stop - start)


def _explained(where: str, tensors: tuple[TensorInfo, ...], index: Any) -> None:
    """The index against the headers: the same tensors in the same files, the same total."""
    found = {t.name: t.file for t in tensors}
    if len(found) != len(tensors):
        raise UnsupportedModel(f"{where}: {len(tensors) - len(found)} tensors stand in two shards")
    if index is None:
        return
    if found != index["weight_map"]:
        names = sorted({n for n, f in found.items() ^ index["weight_map"].items()})
        raise UnsupportedModel(
            f"{where}: {INDEX} and the shards' headers differ in {len(names)} tensors, first {names[0]};"
            " set base.revision to a whole commit"
        )
    total = sum(t.nbytes for t in tensors)
    stated = (index.get("metadata") or {}).get("total_size", total)
    if stated != total:
        raise UnsupportedModel(f"{where}: {INDEX} states {stated} bytes of weights, the headers add up to {total}")
