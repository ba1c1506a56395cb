"""A file of the base as the kernel keeps it: hashed and written without a copy in between.

A disk that takes the pages as they lie spares the processor most of what a merge else copies.
"""

import mmap
import os
from collections.abc import Iterator

from gradelora.errors import Damaged

# Each piece is let go once it was used: what a process maps counts as its memory.
PIECE_BYTES = 2**21


class Mapped:
    """An open file, which must not shrink meanwhile: the kernel ends the process then (SIGBUS)."""

    def __init__(self, file: int) -> None:
        self._size = os.fstat(file).st_size
        self._map = mmap.mmap(file, self._size, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Bytes [start, end) a piece at a time, each valid until the next one is asked for.

        Raises Damaged where the file ends before.
        """
        if end > self._size:
            raise Damaged(f"a file of the base ends at byte {self._size} instead of {end}; fetch the base model again")
        for position in range(start, end, PIECE_BYTES):
            stop = min(position + PIECE_BYTES, end)
            yield self._bytes[position:stop]
            self._release(position, stop)

    def _release(self, start: int, end: int) -> None:
        """Let go of the pages: the kernel still holds them, the process no longer."""
        aligned = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, aligned, end - aligned)
