"""What a process on a CPU keeps although nobody holds it: holes in the C library's heap, compiled kernels."""

import ctypes
import os

# mallopt(3): the size from which glibc maps an allocation by itself.  Once given, it is adapted no more.
M_MMAP_THRESHOLD = -3
MAPPED_FROM_BYTES = 1 << 20
# oneDNN's own cache of kernels and the one that torch keeps before it (ideep): 1024 each unless told.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS = 64


def no_holes() -> None:
    """From here on tensors of a MiB or more are mapped one by one, so that freeing one gives its memory back.

    Under ZeRO-3 parameters are whole for a moment, in loading and in every step; packed experts are
    unpacked and dropped.  What stays lies behind the hole that they leave: on the heap a rank would keep
    the room of many layers, and not the same in every run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)


def few_kernels() -> None:
    """Before the first product in bf16: a kernel of some 0.3 MB is compiled for every shape and kept.

    Experts see another number of tokens each time, so the caches would fill with what is not used again.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))
