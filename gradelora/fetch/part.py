"""A file that arrives in blocks: the sparse part, the journal of its blocks, its publication.

Both lie under the cache's own file system, beside the blobs.  The journal is append-only text,
a line a block: index and CRC-32.  It is believed only as far as the part agrees with it, so a
journal ahead of the data, a damaged line or a flipped byte cost a block and never the file.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import threading
import zlib

from gradelora.artifacts import RemoteFile
from gradelora.errors import ChecksumMismatch, NotEnoughDisk
from gradelora.fetch.progress import spell_bytes
from gradelora.hub import RepoCache
from gradelora.store import fsync

# What a kill costs at most on each connection.
BLOCK_BYTES = 2**18
HASHED_AT_ONCE = 8
# sync_file_range(2); not every libc has it.
SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


class Stopped(Exception):
    """The download is being ended: the part is closed."""


class Part:
    """One large file on its way to `blobs/<sha256>`.  Safe for threads."""

    def __init__(self, cache: RepoCache, file: RemoteFile) -> None:
        assert file.sha256 is not None, f"{file.name} is no large file"
        self.file, self.sha256, self.blob = file, file.sha256, cache.blob(file)
        self.path = cache.parts / f"{self.sha256}.part"
        self.journal = self.path.with_suffix(".journal")
        self.blocks = -(-file.size // BLOCK_BYTES)
        self._lock = threading.Lock()
        self._fd = -1
        self._log = -1
        self._done = bytearray(self.blocks)
        self._taken = bytearray(self.blocks)
        self._hash = hashlib.sha256()
        self._hashed = 0

    def open(self) -> None:
        """Allocate the part, or go on with one.  Raises NotEnoughDisk before a byte is fetched."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        # A longer part is a stale one; what agrees with the journal is still good.
        os.ftruncate(self._fd, min(os.fstat(self._fd).st_size, self.file.size))
        self._recover()
        try:
            os.posix_fallocate(self._fd, 0, max(1, self.file.size))
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise NotEnoughDisk(
                f"{self.path.parent}: no room for {self.file.name} ({spell_bytes(self.file.size)},"
                f" {spell_bytes(self.done_bytes)} of it there: {error.strerror}); free space or set HF_HUB_CACHE"
            ) from error
        self._log = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _recover(self) -> None:
        """Mark the blocks that the journal names and whose CRC is right."""
        try:
            lines = self.journal.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            index, _, crc = line.partition(" ")
            if index.isdecimal() and int(index) < self.blocks and not self._done[int(index)]:
                data = os.pread(self._fd, self.block_size(int(index)), int(index) * BLOCK_BYTES)
                right = len(data) == self.block_size(int(index)) and f"{zlib.crc32(data):08x}" == crc
                self._done[int(index)] = self._taken[int(index)] = right

    def block_size(self, index: int) -> int:
        """Bytes of one block; the last may be short."""
        return min(BLOCK_BYTES, self.file.size - index * BLOCK_BYTES)

    @property
    def done_bytes(self) -> int:
        """Bytes of finished blocks."""
        short = BLOCK_BYTES - self.block_size(self.blocks - 1)
        return self._done.count(1) * BLOCK_BYTES - (short if self._done[-1] else 0)

    @property
    def untaken_blocks(self) -> int:
        """Blocks that nobody is fetching yet."""
        return self._taken.count(0)

    @property
    def whole(self) -> bool:
        """Whether every block is there."""
        return all(self._done)

    def take(self, most: int) -> range | None:
        """The next run of at most `most` blocks that nobody is fetching; None where there is none."""
        with self._lock:
            first = self._taken.find(0)
            if first < 0:
                return None
            last = first
            while last < min(first + most, self.blocks) and not self._taken[last]:
                self._taken[last] = 1
                last += 1
            return range(first, last)

    def give_back(self, run: range) -> None:
        """Let others fetch what is not finished of a run."""
        with self._lock:
            for index in run:
                self._taken[index] = self._done[index]

    def write(self, offset: int, data: memoryview) -> None:
        """Bytes in their place.  Raises Stopped once the part is closed."""
        # Under the lock: the number of a closed descriptor may be another file's by now.
        with self._lock:
            if self._fd < 0:
                raise Stopped
            while data:
                written = os.pwrite(self._fd, data, offset)
                offset, data = offset + written, data[written:]

    def finish(self, index: int, crc: int) -> None:
        """Note a block whose bytes are written."""
        with self._lock:
            if self._log < 0:
                raise Stopped
            # One small append: whole or not there, whatever kills us.
            os.write(self._log, f"{index} {crc:08x}\n".encode())
            self._done[index] = self._taken[index] = 1

    def advance(self) -> bool:
        """Hash the blocks that continue what is hashed already; True when that is all of them.

        For one thread at a time: so the hash is known soon after the last byte.
        """
        while self._hashed < self.blocks and self._done[self._hashed]:
            with self._lock:
                if self._fd < 0:
                    raise Stopped
                fd = os.dup(self._fd)
            try:
                # Up to a few blocks at once, from the page cache; longer reads leave the GIL alone.
                stop = self._hashed
                while stop < min(self._hashed + HASHED_AT_ONCE, self.blocks) and self._done[stop]:
                    stop += 1
                start = self._hashed * BLOCK_BYTES
                data = os.pread(fd, min(stop * BLOCK_BYTES, self.file.size) - start, start)
                _begin_flush(fd, start, len(data))
                self._hash.update(data)
                self._hashed = stop
            finally:
                os.close(fd)
        return self._hashed == self.blocks

    def publish(self) -> None:
        """Flush, compare the hash, rename into blobs/.  Raises ChecksumMismatch after removing the part."""
        os.fsync(self._fd)
        if self._hash.hexdigest() != self.sha256:
            self.discard()
            raise ChecksumMismatch(f"{self.file.name}: arrived with another sha256 than announced; fetching it again")
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.rename(self.blob)
        except FileNotFoundError:
            # Another process shared our work where locks do nothing, and was first.
            if not self.blob.exists():
                raise
        fsync(self.blob.parent)
        self.journal.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Forget all of it."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file descriptors; what is finished stays."""
        with self._lock:
            for fd in (self._fd, self._log):
                if fd >= 0:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            self._fd = self._log = -1


def _begin_flush(fd: int, start: int, size: int) -> None:
    """Let the disk write these bytes now, without waiting: else the fsync at the end finds all of them to do."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(size), SYNC_FILE_RANGE_WRITE)
