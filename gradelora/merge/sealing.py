"""One shard in one pass: what the file system shares is shared, the rest read or made, hashed and written.

A shard is written under `<name>.part` and renamed when it was flushed, so a shard under its own
name is whole.  The journal holds the hashes of those: a run that was killed goes on behind them.
The hash is of what was meant to be written; `read_again` holds the disk against it.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradelora.artifacts import sha256_file
from gradelora.errors import Damaged
from gradelora.merge.blocks import BLOCK_BYTES, share, whole_blocks, write
from gradelora.merge.journal import Entry
from gradelora.merge.regions import Bench, Copied, Made, Product

# What is made and what lies otherwise in the base is gathered to so much before it is written.
ROOM_BYTES = 2**20
READERS = 4
# Called all along; raises where the work is over.
GoOn = Callable[[], None]


def take_over(product: Product, written: int, base: Path) -> list[tuple[int, int]]:
    """The ranges of an empty file that now lie on the base's own blocks of the disk."""
    with (base / product.shard.name).open("rb") as source:
        return [
            (start, end)
            for region, start, end in _whole_blocks(product)
            if share(source.fileno(), written, start + region.source - region.start, start, end - start)
        ]


def fill(product: Product, written: int, shared: Sequence[tuple[int, int]], bench: Bench, go_on: GoOn) -> str:
    """Write what is not shared; returns the sha256 of the whole shard.

    Raises Damaged for a base that ends early and for weights of another size than theirs.
    """
    digest, position = hashlib.sha256(), 0
    for block in _contents(product, bench):
        go_on()
        digest.update(block[: product.shard.size - position])
        for start, end in gaps(shared, position, position + len(block)):
            write(written, start, block[start - position : end - position])
        position += len(block)
    return digest.hexdigest()


def flush(product: Product, written: int) -> int:
    """Bring a filled shard to the disk; returns the time that it bears, in nanoseconds."""
    # Its last block was written whole.
    os.ftruncate(written, product.shard.size)
    os.fsync(written)
    return os.fstat(written).st_mtime_ns


def entry_of(product: Product, sha256: str, mtime_ns: int, bench: Bench) -> Entry:
    """What the journal says of a shard."""
    shard, survivals = product.shard, tuple(bench.survivals)
    return Entry(name=shard.name, size=shard.size, mtime_ns=mtime_ns, sha256=sha256, survivals=survivals)


def compare(product: Product, path: Path, bench: Bench, go_on: GoOn) -> Entry:
    """The entry of a shard that lies there, made anew in memory.  Raises Damaged where it differs."""
    digest, position = hashlib.sha256(), 0
    with path.open("rb") as there:
        for block in _contents(product, bench):
            go_on()
            expected = block[: product.shard.size - position]
            if there.read(len(expected)) != expected:
                raise Damaged(f"{path}: differs within {ROOM_BYTES} bytes from {position}; check the disk, run again")
            digest.update(expected)
            position += len(expected)
        return entry_of(product, digest.hexdigest(), os.fstat(there.fileno()).st_mtime_ns, bench)


def read_again(folder: Path, entries: Sequence[Entry]) -> None:
    """Hash what lies on the disk.

    Raises Damaged naming the shards that are not what was written, after removing them.
    """
    with ThreadPoolExecutor(READERS) as pool:
        hashes = pool.map(lambda entry: sha256_file(folder / entry.name), entries)
        wrong = [entry.name for entry, sha256 in zip(entries, hashes, strict=True) if sha256 != entry.sha256]
    for name in wrong:
        (folder / name).unlink()
    if wrong:
        raise Damaged(
            f"{folder}: {', '.join(wrong)} read back differently than written; removed; check the disk, run again"
        )


def gaps(shared: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of bytes [start, end) lies in none of the ranges `shared`, which are in order."""
    for first, last in shared:
        if last > start and first < end:
            if start < first:
                yield start, first
            start = last
    if start < end:
        yield start, end


def _whole_blocks(product: Product) -> Iterator[tuple[Copied, int, int]]:
    """The regions with whole blocks in them that lie alike in the base, and which bytes [start, end) these are."""
    for region in product.regions:
        if isinstance(region, Copied) and (region.source - region.start) % BLOCK_BYTES == 0:
            start, end = whole_blocks(region.start, region.end)
            if start < end:
                yield region, start, end


def _contents(product: Product, bench: Bench) -> Iterator[memoryview]:
    """All bytes of a shard from its beginning, in parts of whole blocks; the last one is filled up.

    Each is valid until the next one is asked for.  What lies alike in the base is never copied in memory.
    """
    room = Room()
    whole = {region: (start, end) for region, start, end in _whole_blocks(product)}
    for region in product.regions:
        if isinstance(region, Made):
            yield from room.filled_with(_made(region, product.shard.name, bench))
            continue
        base, shift = bench.mapped(product.shard.name), region.source - region.start
        start, end = whole.get(region, (region.end, region.end))
        yield from room.filled_with(base.pieces(region.source, start + shift))
        if start < end:
            yield from room.rest()
            yield from base.pieces(start + shift, end + shift)
        yield from room.filled_with(base.pieces(end + shift, region.end + shift))
    yield from room.rest()


def _made(region: Made, shard: str, bench: Bench) -> Iterator[memoryview]:
    needed = region.end - region.start
    for data in region.pieces(bench):
        yield data
        needed -= len(data)
    if needed:
        raise Damaged(f"{shard}: {region.name}: {needed} bytes too few were made; delete the folder and merge again")


class Room:
    """Memory of its own pages, as direct writes need, in which parts are gathered."""

    def __init__(self) -> None:
        self._bytes, self._filled = memoryview(mmap.mmap(-1, ROOM_BYTES)), 0

    def filled_with(self, parts: Iterator[memoryview]) -> Iterator[memoryview]:
        """Gather `parts`; gives all of the room each time it is full."""
        for part in parts:
            while part:
                count = min(len(part), ROOM_BYTES - self._filled)
                self._bytes[self._filled : self._filled + count] = part[:count]
                part, self._filled = part[count:], self._filled + count
                if self._filled == ROOM_BYTES:
                    yield self._bytes
                    self._filled = 0

    def rest(self) -> Iterator[memoryview]:
        """What is gathered, filled up to a whole block."""
        if self._filled:
            yield self._bytes[: self._filled + -self._filled % BLOCK_BYTES]
            self._filled = 0
