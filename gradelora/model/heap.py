"""The C library's heap, while large tensors come and go."""

import contextlib
import ctypes
from collections.abc import Iterator

# mallopt(3): names of its parameters, and the values at which glibc's own adjustment ends.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
MAPPED_FROM_BYTES = 1 << 20


@contextlib.contextmanager
def no_holes() -> Iterator[None]:
    """Tensors from a MiB on are mapped one by one, so that freeing one gives its memory back.

    Under ZeRO-3 each parameter is whole for a moment, and what stays of it lies behind the hole
    that it leaves: on the heap a rank would keep nearly the whole model's room.  Not for longer
    than loading, because mapping costs time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
