"""What a folder's disk writes, reads back and what a core hashes, in bytes a second."""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

BLOCK_BYTES = 2**24
MOST_BYTES = 2**28
MOST_S = 3.0


def disk_rates(folder: Path) -> tuple[float, float]:
    """(written and flushed, read back) a second in `folder`.  Raises OSError."""
    # Zeros would flatter a file system that compresses.
    block = os.urandom(BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        handle = file.fileno()
        started, written = time.monotonic(), 0
        while written < MOST_BYTES and time.monotonic() - started < MOST_S:
            written += os.write(handle, block)
        os.fsync(handle)
        write_s = time.monotonic() - started
        with contextlib.suppress(OSError):
            # Else memory would be measured.
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        started, read = time.monotonic(), 0
        while read < written and time.monotonic() - started < MOST_S:
            read += len(os.pread(handle, BLOCK_BYTES, read))
        read_s = time.monotonic() - started
    return written / max(write_s, 1e-9), read / max(read_s, 1e-9)


def hashed_per_s() -> float:
    """sha256 of one core."""
    block, times = bytes(BLOCK_BYTES), []
    for _ in range(4):
        started = time.monotonic()
        hashlib.sha256(block).digest()
        times.append(time.monotonic() - started)
    return BLOCK_BYTES / min(times)
