"""One shard at a time: copied ahead, filled in and read back in one pass.

A shard is written under `<name>.part` and renamed when its bytes were read back, found right
and flushed, so a shard under its own name is whole.  The journal holds the hashes of those: a
run that was killed goes on behind them.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from gradelora.errors import Damaged
from gradelora.merge.blocks import reserve
from gradelora.merge.journal import Entry
from gradelora.merge.mapped import Mapped, address_of
from gradelora.merge.regions import Bench, Copied, Made, Product

PIECE_BYTES = 2**20
COPY_BYTES = 2**30
# Of the file systems that can share them, and of memory's pages.
BLOCK_BYTES = 4096


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
    return Entry(
        name=shard.name,
        size=shard.size,
        mtime_ns=os.fstat(written).st_mtime_ns,
        sha256=digest.hexdigest(),
        survivals=tuple(bench.survivals),
    )


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
    """A region from one descriptor to the other inside the kernel; its whole blocks are shared where it can.

    XFS and Btrfs share blocks that lie alike in both files, and copy a request that begins or ends within one.
    """
    size = region.end - region.start
    alike = (region.source - region.start) % BLOCK_BYTES == 0
    head = min(-region.start % BLOCK_BYTES, size) if alike else 0
    tail = (size - head) % BLOCK_BYTES if alike else 0
    for first, last in ((0, head), (head, size - tail), (size - tail, size)):
        _copy(source, target, region.source + first, region.start + first, last - first)


def _copy(source: int, target: int, there: int, here: int, size: int) -> None:
    """`size` bytes from `there` to `here`; by reading and writing on file systems that cannot do it themselves."""
    while size:
        try:
            moved = os.copy_file_range(source, target, min(COPY_BYTES, size), there, here)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            moved = os.pwrite(target, os.pread(source, min(PIECE_BYTES, size), there), here)
        if moved == 0:
            raise Damaged(f"the base's file ended after {there} bytes; fetch the base model again")
        there, here, size = there + moved, here + moved, size - moved
