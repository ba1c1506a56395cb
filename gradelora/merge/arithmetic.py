"""The sum of a weight and its LoRA update, bit for bit as PEFT's merge_and_unload makes it on a CPU."""

import contextlib
import ctypes
import math
from typing import Any

import torch

from gradelora.errors import UnsupportedModel
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.sealing import read_into
from gradelora.merge.targets import Target

# From malloc.h.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 2**20
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# So much of a weight is widened to float32 at a time: it stays in the processor's cache.
PIECE_ELEMENTS = 2**17


class Arithmetic:
    """The sums of one merge, one at a time, on `threads` CPU threads.

    The float32 update is kept in one block for all weights: asking the system for a new one
    each time costs several times the product itself.
    """

    def __init__(self, threads: int) -> None:
        _prepare(threads)
        self._block = torch.empty(0)

    def merged_bytes(self, target: Target, base: int, adapter: int) -> memoryview:
        """The new data of `target.weight`; `base` and `adapter` are open file descriptors.

        PEFT holds the factors in float32, multiplies there and adds in place, which rounds once:
        W = (W.float() + B @ A * scale).to(W.dtype).  DoRA: variants.py, DoraLinearVariant.
        Raises UnsupportedModel where the sum is not finite.
        """
        weight = _read(base, target.weight)
        delta = self._delta(target, adapter)
        if target.magnitude is None:
            merged = _add(weight, delta)
        else:
            summed = weight + delta
            factor = _read(adapter, target.magnitude).float() / torch.linalg.norm(summed, dim=1)
            merged = (factor.view(-1, 1) * summed).to(weight.dtype)
        # aminmax passes NaN on and reads the weight once; isfinite makes copies of it.
        if not torch.isfinite(torch.stack(torch.aminmax(merged))).all():
            raise UnsupportedModel(
                f"{target.weight.name}: not finite after the merge; the adapter is broken, train it again"
            )
        return memoryview(merged.contiguous().view(torch.uint8).reshape(-1).numpy()).cast("B")

    def _delta(self, target: Target, adapter: int) -> Any:
        """B[out, r] @ A[r, in] * scale in float32, valid until the next call."""
        size = math.prod(target.weight.shape)
        if self._block.numel() < size:
            self._block = torch.empty(size)
        delta = self._block[:size].view(target.weight.shape)
        torch.mm(_read(adapter, target.lora_b).float(), _read(adapter, target.lora_a).float(), out=delta)
        return delta.mul_(target.scale)


def _add(weight: Any, delta: Any) -> Any:
    """`weight` plus `delta`, in place: widened, added and rounded once."""
    for narrow, wide in zip(weight.view(-1).split(PIECE_ELEMENTS), delta.view(-1).split(PIECE_ELEMENTS), strict=True):
        narrow.copy_(wide.add_(narrow))
    return weight


def _read(file: int, tensor: Tensor) -> Any:
    """One tensor of an open safetensors file, in memory of its own."""
    data = torch.empty(tensor.nbytes, dtype=torch.uint8)
    read_into(file, memoryview(data.numpy()), tensor.start)
    return data.view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def _prepare(threads: int) -> None:
    """CPU threads of a matrix product; and freed weights go back to the system at once.

    glibc raises its threshold for mmap with every large block that is freed, up to 32 MiB, and
    then keeps such blocks, thread by thread; a threshold that is set stays (man 3 mallopt).
    """
    torch.set_num_threads(threads)
    # Another C library has no mallopt, and needs none.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
