"""A checkpoint folder as its safetensors headers describe it.

The format: 8 bytes little-endian length, a JSON header of that length, then the data, whose
offsets count from the header's end (https://github.com/huggingface/safetensors#format).
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.errors import Damaged, UnsupportedModel

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


class Tensor(Frozen):
    """Where one tensor lies: bytes [start, end) of `file`, counted from the file's start."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return self.end - self.start


class Shard(Frozen):
    """One safetensors file: `tensors` in the order of their data, which fills the file without a gap."""

    name: str
    size: int
    tensors: tuple[Tensor, ...]


def read_shard(path: Path) -> Shard:
    """The header of one safetensors file.  Raises Damaged where header, shapes and size disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise Damaged(f"{path}: {size} bytes with a header of {length}; fetch the base model again")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        tensors = [_tensor(path.name, name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: unreadable safetensors header ({error}); fetch the base model again") from error
    tensors.sort(key=lambda t: (t.start, t.end))
    position = 8 + length
    for tensor in tensors:
        if tensor.start != position:
            raise Damaged(f"{path}: {tensor.name} starts at byte {tensor.start}, the data before it ends at {position}")
        position = tensor.end
    if position != size:
        raise Damaged(f"{path}: {size} bytes, {position} in its header; fetch the base model again")
    return Shard(name=path.name, size=size, tensors=tuple(tensors))


def _tensor(file: str, name: str, entry: dict[str, Any], data_start: int) -> Tensor:
    start, end = entry["data_offsets"]
    tensor = Tensor(
        name=name,
        file=file,
        dtype=entry["dtype"],
        shape=tuple(entry["shape"]),
        start=data_start + start,
        end=data_start + end,
    )
    # F4 and the like pack several values into a byte: their size is checked by the offsets alone.
    item = ITEM_BYTES.get(tensor.dtype)
    if item is not None and tensor.nbytes != item * math.prod(tensor.shape):
        raise ValueError(f"{name}: {tensor.nbytes} bytes for {tensor.dtype}{list(tensor.shape)}")
    return tensor


def read_checkpoint(folder: Path) -> tuple[Shard, ...]:
    """Every shard of the checkpoint, by name.

    Raises UnsupportedModel where there are no root safetensors, Damaged where the index and
    the shards disagree.
    """
    weight_map = _weight_map(folder)
    if weight_map is None:
        if not (folder / SINGLE).exists():
            raise UnsupportedModel(
                f"{folder}: neither {INDEX} nor {SINGLE}; only safetensors checkpoints can be merged"
            )
        return (read_shard(folder / SINGLE),)
    shards = tuple(read_shard(folder / name) for name in sorted(set(weight_map.values())))
    held = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    if held != weight_map or len(held) != sum(len(shard.tensors) for shard in shards):
        wrong = sorted({n for n in held.keys() | weight_map.keys() if held.get(n) != weight_map.get(n)})
        raise Damaged(f"{folder / INDEX}: disagrees with the shards on {', '.join(wrong[:3]) or 'a doubled tensor'}")
    return shards


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard name as the index says, or None for a checkpoint of one file."""
    if not (folder / INDEX).exists():
        return None
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    for name in weight_map.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsupportedModel(f"{folder / INDEX}: {name!r} is no file of this folder")
        if not (folder / name).exists():
            raise Damaged(f"{folder / name}: missing; fetch the base model again")
    return weight_map


def header_of(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The bytes before the data of tensors (name, dtype, shape) in this order, and where each of them lies.

    Padded with spaces to a multiple of 8, as the safetensors library writes it.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for name, dtype, shape in tensors:
        ends.append(ends[-1] + ITEM_BYTES[dtype] * math.prod(shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends[-2:]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, tuple((first + a, first + b) for a, b in itertools.pairwise(ends))


def index_text(folder: Path, shards: tuple[Shard, ...]) -> str | None:
    """The index of these shards: true sizes, the base's other metadata; None for a single file."""
    if not (folder / INDEX).exists():
        return None
    metadata = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("metadata") or {}
    metadata["total_size"] = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
