"""The float32 matrix product that torch makes on a CPU, without the import of torch.

A sum has PEFT's bits only by torch's own kernel: MKL's sgemm, which lies in torch's library.  To
open that library costs a tenth of the import of torch, which takes longer than to copy gigabytes.
"""

import ctypes
import functools
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Multiply = Callable[[Floats, Floats, Floats, int], None]


def multiply(left: Floats, right: Floats, out: Floats, threads: int) -> None:
    """out[M, N] = left[M, K] @ right[K, N], bit for bit as torch.mm on `threads` threads; all are contiguous."""
    # A product of one element is another kernel's in torch.
    kernel = _by_torch if out.size == 1 else _kernel()
    kernel(left, right, out, threads)


@functools.cache
def _kernel() -> Multiply:
    """MKL's sgemm out of torch's library; torch itself on machines and builds where it has another one."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations or platform.machine() != "x86_64":
        return _by_torch
    try:
        library = ctypes.CDLL(str(Path(found.submodule_search_locations[0]) / "lib" / "libtorch_cpu.so"))
        return functools.partial(_by_mkl, library.sgemm_, library.MKL_Set_Num_Threads_Local)
    except (OSError, AttributeError):
        return _by_torch


def _by_mkl(
    sgemm: Callable[..., None],
    set_threads: Callable[[int], int],
    left: Floats,
    right: Floats,
    out: Floats,
    threads: int,
) -> None:
    """Fortran counts columns first, so it is given the transposed product: out.T = right.T @ left.T."""
    (M, K), N = left.shape, right.shape[1]
    m, n, k = (ctypes.byref(ctypes.c_int(size)) for size in (M, N, K))
    one, zero = (ctypes.byref(ctypes.c_float(factor)) for factor in (1.0, 0.0))
    a, b, c = (ctypes.c_void_p(array.ctypes.data) for array in (right, left, out))
    before = set_threads(threads)
    sgemm(b"N", b"N", n, m, k, one, a, n, b, k, zero, c, n)
    set_threads(before)


def _by_torch(left: Floats, right: Floats, out: Floats, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))
