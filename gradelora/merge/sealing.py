"""One shard at a time: copy, rewrite the targeted ranges, read back, seal, remember.

A shard is written under `<name>.part` and renamed when its bytes were read back, found right
and flushed, so a shard under its own name is whole.  The journal holds the hashes of those: a
run that was killed goes on behind them.  The disk writes a shard from the moment that it is
copied, while it is still rewritten, compared and hashed: what takes longest is never waited for
twice.
"""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from functools import partial
from pathlib import Path

from gradelora.artifacts import FileEntry, Frozen
from gradelora.errors import Damaged
from gradelora.merge.checkpoint import Shard, Tensor
from gradelora.merge.mapped import Mapped
from gradelora.merge.targets import Target
from gradelora.store import fsync

PIECE_BYTES = 2**20
COPY_BYTES = 2**30
# Hands the merged weight of a target to a function, and lets go of it before the next one is made.
Merge = Callable[[Target, int, int, Callable[[memoryview], bytes]], bytes]


class Entry(Frozen):
    """One line of the journal."""

    name: str
    size: int
    sha256: str


class Journal:
    """The sealed shards of one merge, one JSON line each; another merge's journal is dropped."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._entries: dict[str, Entry] = {}
        if lines[:1] == [identity]:
            for line in lines[1:]:
                # A torn last line is a shard whose seal was not yet recorded.
                with contextlib.suppress(ValueError):
                    entry = Entry.model_validate_json(line)
                    self._entries[entry.name] = entry
        text = "".join(f"{line}\n" for line in [identity, *(e.model_dump_json() for e in self._entries.values())])
        part = path.with_suffix(".part")
        write_durably(part, text)
        part.replace(path)
        fsync(path.parent)

    def sealed(self, folder: Path, shard: Shard) -> Entry | None:
        """The entry of a shard that is there in full, or None."""
        entry = self._entries.get(shard.name)
        path = folder / shard.name
        if entry is None or not path.exists() or path.stat().st_size != entry.size:
            return None
        return entry

    def add(self, entry: Entry) -> None:
        """Record one sealed shard, durably."""
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{entry.model_dump_json()}\n")
            file.flush()
            os.fsync(file.fileno())


def seal_shard(
    source: Path,
    adapter: Path,
    out: Path,
    shard: Shard,
    targets: Mapping[str, Target],
    merge: Merge,
    flusher: Executor,
) -> Entry:
    """Write one shard of the merged model and read it back.  Raises Damaged where the two differ.

    A shard that was renamed but whose hash was not yet recorded is only read.
    """
    part, final = out / f"{shard.name}.part", out / shard.name
    touched = [targets[tensor.name] for tensor in shard.tensors if tensor.name in targets]
    with _descriptors(source / shard.name, adapter) as (base, factors):
        if final.exists() and final.stat().st_size == shard.size:
            with contextlib.suppress(Damaged), final.open("rb") as there:
                again = [(t.weight, merge(t, base, factors, _sha256)) for t in touched]
                return _read_back(there.fileno(), base, shard, again)
        with part.open("w+b") as file:
            written = file.fileno()
            copy(base, written, shard.size)
            flushed = flusher.submit(os.fsync, written)
            try:
                sums = [(t.weight, merge(t, base, factors, partial(_write, written, t.weight.start))) for t in touched]
                entry = _read_back(written, base, shard, sums)
            finally:
                # The descriptor must outlive its flush.
                wait([flushed])
            flushed.result()
            os.fsync(written)
    part.replace(final)
    fsync(out)
    return entry


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _write(file: int, position: int, data: memoryview) -> bytes:
    """Write all of `data`, and return its sha256: one call writes at most 2 GiB."""
    digest = _sha256(data)
    while data:
        count = os.pwrite(file, data, position)
        data, position = data[count:], position + count
    return digest


def read_into(file: int, buffer: memoryview, position: int) -> None:
    """Fill `buffer` from `position` on.  Raises Damaged where the file ends before."""
    rest = buffer
    while rest:
        count = os.preadv(file, [rest], position)
        if count == 0:
            raise Damaged(f"a file ended {len(rest)} bytes before its tensor did; check the disk and run again")
        rest, position = rest[count:], position + count


def copy(source: int, target: int, size: int) -> None:
    """`size` bytes from one descriptor to the other inside the kernel; shared, not copied, where it can.

    Falls back to reading and writing on file systems that cannot.
    """
    done = 0
    while done < size:
        try:
            moved = os.copy_file_range(source, target, min(COPY_BYTES, size - done), done, done)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            moved = os.pwrite(target, os.pread(source, min(PIECE_BYTES, size - done), done), done)
        if moved == 0:
            raise Damaged(f"the base's file ended after {done} of {size} bytes; fetch the base model again")
        done += moved


def _read_back(written: int, base: int, shard: Shard, sums: Sequence[tuple[Tensor, bytes]]) -> Entry:
    """Hash what was written; compare it with the base, and the merged weights with their sha256.

    Reads what the kernel holds of the file, which is what it writes to the disk.  Raises Damaged.
    """
    made, source = Mapped(written, shard.size), Mapped(base, shard.size)
    digest, position = hashlib.sha256(), 0
    for weight, expected in sums:
        _compare(made, source, position, weight.start, digest.update, shard.name)
        found = hashlib.sha256()
        for piece in made.pieces(weight.start, weight.end):
            digest.update(piece)
            found.update(piece)
        if found.digest() != expected:
            raise Damaged(f"{shard.name}: {weight.name} reads back differently; check the disk and run again")
        position = weight.end
    _compare(made, source, position, shard.size, digest.update, shard.name)
    return Entry(name=shard.name, size=shard.size, sha256=digest.hexdigest())


def _compare(made: Mapped, base: Mapped, start: int, end: int, update: Callable[[memoryview], None], name: str) -> None:
    position = start
    for piece in made.pieces(start, end):
        if not made.equals(base, position, position + len(piece)):
            raise Damaged(f"{name}: differs from the base between bytes {start} and {end}; check the disk, run again")
        base.release(position, position + len(piece))
        update(piece)
        position += len(piece)


@contextlib.contextmanager
def _descriptors(*paths: Path) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        files = []
        for path in paths:
            files.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, files[-1])
        yield files


def write_durably(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    path.write_text(text, encoding="utf-8")
    fsync(path)


def entry_of(entry: Entry, path: Path) -> FileEntry:
    """The artifact's entry of a sealed shard, without hashing it again."""
    return FileEntry(name=entry.name, size=entry.size, sha256=entry.sha256, mtime_ns=path.stat().st_mtime_ns)
