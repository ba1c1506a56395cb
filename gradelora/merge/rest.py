"""What lies beside the shards: index, tokenizer and other small files; config.json is kept back."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gradelora.artifacts import ASIDE, FileEntry, ModelSnapshot
from gradelora.errors import Damaged
from gradelora.merge.checkpoint import INDEX, Shard, index_text, read_checkpoint
from gradelora.merge.journal import write_durably
from gradelora.merge.regions import Survival
from gradelora.store import fsync

CONFIG = "config.json"
SURVIVAL = "delta_survival.jsonl"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# The base's card describes the base; the folders hold it in other formats.
LEFT_OUT = ("README.md", ".gitattributes", INDEX, CONFIG)
LEFT_OUT_FOLDERS = ("original", "metal")


def write_rest(
    snapshot: ModelSnapshot, out: Path, shards: Sequence[Shard], survivals: Sequence[Survival], *, packed: bool
) -> list[FileEntry]:
    """Everything but the shards; without `packed` the config no longer speaks of MXFP4.

    config.json lies under `aside/`: with it the folder would load, before anybody has judged it.
    Raises Damaged where the shards' headers are not those that were planned.
    """
    index = index_text(snapshot.path, tuple(shards))
    copied = [entry.name for entry in snapshot.files if _is_copied(entry.name)]
    written = {} if index is None else {INDEX: index}
    if survivals:
        written[SURVIVAL] = "".join(f"{one.model_dump_json()}\n" for one in survivals)
    for name, text in written.items():
        _place(out, name, text)
    if read_checkpoint(out) != tuple(shards):
        raise Damaged(f"{out}: its headers are not those that were planned; delete the folder and merge again")
    for name in copied:
        _place(out, name, snapshot.path / name)
    config = snapshot.path / CONFIG if packed else _unpacked(snapshot.path / CONFIG)
    _place(out / ASIDE, CONFIG, config)
    fsync(out)
    files = [FileEntry.of(out / name, name) for name in [*written, *copied]]
    return [*files, FileEntry.of(out / ASIDE / CONFIG, CONFIG)]


def _place(out: Path, name: str, contents: Path | str) -> None:
    """One file, durably; under its own name only when it is whole."""
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    part = out / f"{name}.part"
    if isinstance(contents, Path):
        shutil.copyfile(contents, part)
        fsync(part)
    else:
        write_durably(part, contents)
    part.replace(out / name)


def _unpacked(path: Path) -> str:
    """config.json of a base whose experts are written in bf16."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("quantization_config", None)
    return json.dumps(values, indent=2) + "\n"


def _is_copied(name: str) -> bool:
    """Whether a file of the base belongs to the merged model as it is."""
    path = PurePosixPath(name)
    return name not in LEFT_OUT and path.suffix not in WEIGHT_SUFFIXES and path.parts[0] not in LEFT_OUT_FOLDERS
