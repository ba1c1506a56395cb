"""A file's blocks: given all at once, and on their way to the disk early."""

import ctypes
import errno
import os

SYNC_FILE_RANGE_WRITE = 2
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def reserve(file: int, size: int) -> None:
    """Give an empty file its size and, where the file system can, its blocks.

    Blocks that are only looked for when the disk writes hold up whoever copies meanwhile.
    Raises OSError where the disk, or a quota on it, is full.
    """
    os.ftruncate(file, size)
    # posix_fallocate would write into every block of a file system that cannot.
    if _libc.fallocate(file, 0, 0, size) and ctypes.get_errno() in FULL:
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: {size} bytes needed for a shard")


def start_writing(file: int) -> None:
    """Let the kernel begin to write all of the file; it is durable only after fsync, which also tells of errors."""
    _libc.sync_file_range(file, 0, 0, SYNC_FILE_RANGE_WRITE)
