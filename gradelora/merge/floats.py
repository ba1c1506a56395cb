"""Weights as numpy holds them: BF16, F16 and F32 as they are stored, widened to float32, rounded back."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradelora.errors import UnsupportedModel
from gradelora.merge.blocks import read_into
from gradelora.merge.checkpoint import Tensor

# numpy knows no bf16: the upper half of a float32.
STORED: dict[str, type] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
# From here on a float32 is rounded to infinity.
LIMITS = {"BF16": float(np.uint32(0x7F7F8000).view(np.float32)), "F16": 65520.0, "F32": math.inf}


def read_rows(file: int, tensor: Tensor, first: int, stored: NDArray[Any]) -> None:
    """Fill `stored` with rows of `tensor` from `first` on, as they lie in the file."""
    read_into(file, bytes_of(stored), tensor.start + first * (tensor.nbytes // tensor.shape[0]))


def read_float32(file: int, tensor: Tensor) -> NDArray[np.float32]:
    """A whole tensor in float32."""
    stored: NDArray[Any] = np.empty(tensor.shape, STORED[tensor.dtype])
    read_rows(file, tensor, 0, stored)
    values = np.empty(tensor.shape, np.float32)
    widen(stored, values)
    return values


def bytes_of(stored: NDArray[Any]) -> memoryview:
    """An array's data, writable, not a copy."""
    return stored.view(np.uint8).reshape(-1).data


def widen(stored: NDArray[Any], values: NDArray[np.float32]) -> None:
    """Put the same values into `values`."""
    if stored.dtype != np.uint16:
        values[...] = stored
        return
    bits = values.view(np.uint32)
    bits[...] = stored
    bits <<= 16


def round_off(values: NDArray[np.float32], stored: NDArray[Any], room: NDArray[np.float32], tensor: Tensor) -> None:
    """Put `values`, which are used up as `room` is, into `stored`: to nearest, ties to even, as torch rounds.

    Raises UnsupportedModel for a value that is no finite number of the stored type.
    """
    # Extremes pass NaN on, and no comparison with it holds.
    limit = LIMITS[tensor.dtype]
    if not (values.max() < limit and values.min() > -limit):
        raise UnsupportedModel(f"{tensor.name}: not finite after the merge; the adapter is broken, train it again")
    if stored.dtype != np.uint16:
        stored[...] = values
        return
    bits, rounding = values.view(np.uint32), room.view(np.uint32)
    np.right_shift(bits, 16, out=rounding)
    rounding &= 1
    rounding += 0x7FFF
    bits += rounding
    bits >>= 16
    stored[...] = bits
