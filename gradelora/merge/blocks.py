"""A shard's file: its room given at once, whole blocks shared with another file or written past the page cache."""

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from gradelora.errors import Damaged

# What direct writes and shared blocks begin and end at; also memory's pages.
BLOCK_BYTES = 4096
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# linux/fs.h
FICLONERANGE = 0x4020940D
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(file: int, size: int) -> None:
    """Give an empty file its size and, where the file system can, its blocks: a full disk is known at once.

    Raises OSError where the disk, or a quota on it, is full.
    """
    os.ftruncate(file, size)
    # posix_fallocate would write into every block of a file system that cannot.
    if _libc.fallocate(file, 0, 0, size) and ctypes.get_errno() in FULL:
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: {size} bytes needed for a shard")


def create(path: Path) -> int:
    """An empty file, written past the page cache where the file system can.

    The processor copies nothing then, and the base keeps its place in the cache.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)


def write(file: int, position: int, data: memoryview) -> None:
    """Write all of `data`; directly only if position, size and memory begin and end at blocks."""
    while data:
        try:
            count = os.pwrite(file, data, position)
        except OSError as error:
            # Another block size than ours, the rest of a block that was written in part, pages that no device reads.
            if error.errno not in (errno.EINVAL, errno.EFAULT) or not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            through_cache(file)
            continue
        data, position = data[count:], position + count


def through_cache(file: int) -> None:
    """No direct writes from here on."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)


def read_into(file: int, buffer: memoryview, position: int) -> None:
    """Fill `buffer` from `position` on.  Raises Damaged where the file ends before."""
    rest = buffer
    while rest:
        count = os.preadv(file, [rest], position)
        if count == 0:
            raise Damaged(f"a file ended {len(rest)} bytes before its tensor did; check the disk and run again")
        rest, position = rest[count:], position + count


def whole_blocks(start: int, end: int) -> tuple[int, int]:
    """What of bytes [start, end) begins and ends at blocks; perhaps nothing."""
    start += -start % BLOCK_BYTES
    return start, max(start, end // BLOCK_BYTES * BLOCK_BYTES)


def share(source: int, target: int, there: int, here: int, size: int) -> bool:
    """Let `target` have `size` bytes from `there` on at `here` on the same blocks of the disk, without a copy.

    XFS and Btrfs can, where all three are whole blocks; False where nothing was shared.
    """
    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, there, size, here))
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    return True
