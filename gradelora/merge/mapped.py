"""A file's bytes where the kernel keeps them: compared and hashed without copying them.

On the machines measured a copy out of the page cache costs half as much as sha256 itself.
"""

import ctypes
import mmap
from collections.abc import Iterator

# Each piece is let go once it was read: what a process maps counts as its memory.  Large enough
# that threads which hash do not wait for each other's turn with the interpreter.
PIECE_BYTES = 2**22
MEMCMP = ctypes.CDLL(None).memcmp
MEMCMP.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Mapped:
    """An open file of `size` bytes, which must not shrink meanwhile: the kernel ends the process then (SIGBUS)."""

    def __init__(self, file: int, size: int) -> None:
        # A private mapping: ctypes gives no address of a read-only one.  Nothing is written to it.
        self._map = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
        self._bytes = memoryview(self._map)
        self._first = ctypes.c_char.from_buffer(self._map)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Bytes [start, end) a piece at a time; a piece is valid until the next one is asked for."""
        for position in range(start, end, PIECE_BYTES):
            stop = min(position + PIECE_BYTES, end)
            yield self._bytes[position:stop]
            self.release(position, stop)

    def address(self, position: int) -> int:
        """Where the byte at `position` lies in memory."""
        return ctypes.addressof(self._first) + position

    def equals(self, address: int, start: int, end: int) -> bool:
        """Whether [start, end) holds the bytes that lie at `address` in memory."""
        return bool(MEMCMP(self.address(start), address, end - start) == 0)

    def release(self, start: int, end: int) -> None:
        """Let go of the pages of [start, end): the kernel still holds them, the process no longer."""
        aligned = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, aligned, end - aligned)


def address_of(data: memoryview) -> int:
    """Where writable bytes lie in memory; valid while they are kept."""
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
