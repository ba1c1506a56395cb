"""One shard at a time: copied ahead, filled in and read back in one pass, flushed, remembered.

A shard is written under `<name>.part` and renamed when its bytes were read back, found right
and flushed, so a shard under its own name is whole.  The journal holds the hashes of those: a
run that was killed goes on behind them.
"""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from gradelora.artifacts import FileEntry, Frozen
from gradelora.errors import Damaged
from gradelora.merge.blocks import reserve
from gradelora.merge.checkpoint import Shard
from gradelora.merge.mapped import Mapped, address_of
from gradelora.merge.regions import Bench, Copied, Made, Product, Survival
from gradelora.store import fsync

PIECE_BYTES = 2**20
COPY_BYTES = 2**30


class Entry(Frozen):
    """One line of the journal."""

    name: str
    size: int
    sha256: str
    survivals: tuple[Survival, ...] = ()


class Journal:
    """The sealed shards of one merge, one JSON line each; another merge's journal is dropped."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
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

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def add(self, entry: Entry) -> None:
        """Record one sealed shard.

        Not flushed: a power cut that takes the line leaves a whole shard, which is read again.
        """
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{entry.model_dump_json()}\n")
            self._entries[entry.name] = entry


def copy_ahead(product: Product, base: Path, part: Path) -> int:
    """A new file of the shard's size with everything that is the base's; returns its descriptor."""
    written = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        reserve(written, product.shard.size)
        with (base / product.shard.name).open("rb") as source:
            for region in product.regions:
                if isinstance(region, Copied):
                    copy(source.fileno(), written, region)
    except BaseException:
        os.close(written)
        raise
    return written


def fill_and_read_back(product: Product, written: int, bench: Bench, *, write: bool) -> Entry:
    """Put in what is made anew, and hash the whole file in the same pass; returns its entry.

    Every byte is compared with where it came from as the kernel holds it, which is what it
    writes to the disk.  `write=False` only compares.  Raises Damaged.
    """
    shard = product.shard
    made, digest = Mapped(written, shard.size), hashlib.sha256()
    copied = any(isinstance(region, Copied) for region in product.regions)
    source = bench.base(shard.name) if copied else -1
    base = Mapped(source, os.fstat(source).st_size) if copied else made
    for region in product.regions:
        if isinstance(region, Copied):
            _compare(made, base, region, digest.update, shard.name)
        else:
            _fill(made, written if write else None, region, bench, digest.update, shard.name)
    return Entry(name=shard.name, size=shard.size, sha256=digest.hexdigest(), survivals=tuple(bench.survivals))


def _compare(made: Mapped, base: Mapped, region: Copied, update: Callable[[memoryview], None], name: str) -> None:
    position, shift = region.start, region.source - region.start
    for piece in made.pieces(region.start, region.end):
        there = position + shift
        if not made.equals(base.address(there), position, position + len(piece)):
            raise Damaged(
                f"{name}: differs from the base between bytes {region.start} and {region.end}; "
                "check the disk, run again"
            )
        base.release(there, there + len(piece))
        update(piece)
        position += len(piece)


def _fill(
    made: Mapped, written: int | None, region: Made, bench: Bench, update: Callable[[memoryview], None], name: str
) -> None:
    position = region.start
    for data in region.pieces(bench):
        if written is not None:
            _write(written, position, data)
        start, address = position, address_of(data)
        for piece in made.pieces(start, start + len(data)):
            if not made.equals(address + position - start, position, position + len(piece)):
                raise Damaged(f"{name}: {region.name} reads back differently; check the disk and run again")
            update(piece)
            position += len(piece)
    if position != region.end:
        sizes = f"{position - region.start} bytes made, {region.end - region.start} needed"
        raise Damaged(f"{name}: {region.name}: {sizes}; delete the folder and merge again")


def _write(file: int, position: int, data: memoryview) -> None:
    """Write all of `data`: one call writes at most 2 GiB."""
    while data:
        count = os.pwrite(file, data, position)
        data, position = data[count:], position + count


def read_into(file: int, buffer: memoryview, position: int) -> None:
    """Fill `buffer` from `position` on.  Raises Damaged where the file ends before."""
    rest = buffer
    while rest:
        count = os.preadv(file, [rest], position)
        if count == 0:
            raise Damaged(f"a file ended {len(rest)} bytes before its tensor did; check the disk and run again")
        rest, position = rest[count:], position + count


def copy(source: int, target: int, region: Copied) -> None:
    """A region from one descriptor to the other inside the kernel; shared, not copied, where it can.

    Falls back to reading and writing on file systems that cannot.
    """
    done, size = 0, region.end - region.start
    while done < size:
        there, here = region.source + done, region.start + done
        try:
            moved = os.copy_file_range(source, target, min(COPY_BYTES, size - done), there, here)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            moved = os.pwrite(target, os.pread(source, min(PIECE_BYTES, size - done), there), here)
        if moved == 0:
            raise Damaged(f"the base's file ended after {there} bytes; fetch the base model again")
        done += moved


def write_durably(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    path.write_text(text, encoding="utf-8")
    fsync(path)


def entry_of(entry: Entry, path: Path) -> FileEntry:
    """The artifact's entry of a sealed shard, without hashing it again."""
    return FileEntry(name=entry.name, size=entry.size, sha256=entry.sha256, mtime_ns=path.stat().st_mtime_ns)
