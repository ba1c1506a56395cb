"""The sum of a weight and its LoRA update, bit for bit as PEFT's merge_and_unload makes it on a CPU."""

import contextlib
import ctypes
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


def merged_bytes(target: Target, base: int, adapter: int) -> memoryview:
    """The new data of `target.weight`; `base` and `adapter` are open file descriptors.

    PEFT holds the factors in float32, multiplies there and adds in place, which rounds once:
    W = (W.float() + B @ A * scale).to(W.dtype).  DoRA: variants.py, DoraLinearVariant.
    Raises UnsupportedModel where the sum is not finite.
    """
    weight = _read(base, target.weight)
    delta = (_read(adapter, target.lora_b).float() @ _read(adapter, target.lora_a).float()).mul_(target.scale)
    if target.magnitude is None:
        merged = weight.add_(delta)
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


def _read(file: int, tensor: Tensor) -> Any:
    """One tensor of an open safetensors file, in memory of its own."""
    data = bytearray(tensor.nbytes)
    read_into(file, data, tensor.start)
    return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)


def prepare(threads: int) -> None:
    """CPU threads of a matrix product; and freed weights go back to the system at once.

    glibc raises its threshold for mmap with every large block that is freed, up to 32 MiB, and
    then keeps such blocks, thread by thread; a threshold that is set stays (man 3 mallopt).
    """
    torch.set_num_threads(threads)
    # Another C library has no mallopt, and needs none.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
