"""Tensors of open safetensors files as torch holds them, and back to bytes."""

from typing import Any

import torch

from gradelora.errors import UnsupportedModel
from gradelora.merge.blocks import read_into
from gradelora.merge.checkpoint import Tensor

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "U8": torch.uint8}


def read(file: int, tensor: Tensor) -> Any:
    """One tensor, in memory of its own."""
    return _filled(file, tensor.start, tensor.nbytes).view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def read_first(file: int, tensor: Tensor, index: int) -> Any:
    """`tensor[index]` alone, in memory of its own."""
    size = tensor.nbytes // tensor.shape[0]
    return _filled(file, tensor.start + index * size, size).view(DTYPES[tensor.dtype]).reshape(tensor.shape[1:])


def _filled(file: int, position: int, size: int) -> Any:
    data = torch.empty(size, dtype=torch.uint8)
    read_into(file, memoryview(data.numpy()), position)
    return data


def bytes_of(tensor: Any) -> memoryview:
    """The tensor's data, writable; not a copy where it is contiguous."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()).cast("B")


def check_finite(name: str, tensor: Any) -> None:
    """Raise UnsupportedModel for a weight that is no number any more."""
    # aminmax passes NaN on and reads the weight once; isfinite makes copies of it.
    if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise UnsupportedModel(f"{name}: not finite after the merge; the adapter is broken, train it again")
