"""The sum of a weight and its LoRA update, bit for bit as PEFT's merge_and_unload makes it on a CPU."""

import contextlib
import ctypes
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from gradelora.merge import experts
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.regions import Bench
from gradelora.merge.targets import ExpertTarget, Target
from gradelora.merge.tensors import bytes_of, check_finite, read, read_rows

T = TypeVar("T")
# From malloc.h.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 2**20
# So much of a weight is widened to float32 at a time: it stays in the processor's cache.
PIECE_ELEMENTS = 2**17
# So much of a weight is read, updated and handed on at a time.
ROWS_ELEMENTS = 2**21


class Arithmetic:
    """The sums of one merge, one at a time, on `threads` CPU threads.

    The float32 update is kept in one block for all weights: asking the system for a new one
    each time costs several times the product itself.
    """

    def __init__(self, threads: int) -> None:
        _prepare(threads)
        self._block = torch.empty(0)

    def merged(self, target: Target, bench: Bench) -> Iterator[memoryview]:
        """The new data of `target.weight`, some rows at a time: memory is not that of a vocabulary.

        PEFT holds the factors in float32, multiplies there and adds in place, which rounds once:
        W = (W.float() + B @ A * scale).to(W.dtype).  DoRA: variants.py, DoraLinearVariant.
        Raises UnsupportedModel where the sum is not finite.
        """
        factors = [target.lora_a, target.lora_b, *([target.magnitude] if target.magnitude else [])]
        lora_a, lora_b, *magnitude = (read(bench.adapter, factor).float() for factor in factors)
        rows, columns = target.weight.shape
        # Parts alike: a last one of a single row would be multiplied by another kernel.
        parts = max(1, rows * columns // ROWS_ELEMENTS)
        for part in torch.arange(rows).tensor_split(parts):
            with bench.turn:
                first, last = int(part[0]), int(part[-1]) + 1
                weight = read_rows(bench.base(target.weight.file), target.weight, first, last)
                delta = self._delta(lora_b[first:last], lora_a, target.scale)
                if magnitude:
                    summed = weight + delta
                    factor = magnitude[0][first:last] / torch.linalg.norm(summed, dim=1)
                    merged = (factor.view(-1, 1) * summed).to(weight.dtype)
                else:
                    merged = _add(weight, delta)
                check_finite(target.weight.name, merged)
            yield bytes_of(merged)

    def requantized(self, target: ExpertTarget, bench: Bench) -> Iterator[tuple[memoryview, memoryview]]:
        """Blocks and scales of one expert after another; what they keep of the update goes to `bench`."""
        factors = experts.Factors(target, bench.adapter)
        made = experts.requantized(target, factors, lambda tensor: bench.base(tensor.file))
        for blocks, scales, survival in _in_turn(made, bench):
            bench.survivals.append(survival)
            yield bytes_of(blocks), bytes_of(scales)

    def experts_bf16(
        self, shape: tuple[int, int, int], stored: tuple[Tensor, ...], target: ExpertTarget | None, bench: Bench
    ) -> Iterator[memoryview]:
        """One expert's matrix after another, in bf16.  Raises UnsupportedModel where a sum is not finite."""
        factors = experts.Factors(target, bench.adapter) if target else None
        made = experts.in_bf16(shape, stored, factors, lambda tensor: bench.base(tensor.file))
        for matrix in _in_turn(made, bench):
            yield bytes_of(matrix)

    def _delta(self, lora_b: Any, lora_a: Any, scale: float) -> Any:
        """B[R', r] @ A[r, in] * scale in float32, valid until the next call."""
        shape = len(lora_b), lora_a.shape[1]
        if self._block.numel() < math.prod(shape):
            self._block = torch.empty(math.prod(shape))
        delta = self._block[: math.prod(shape)].view(shape)
        torch.mm(lora_b, lora_a, out=delta)
        return delta.mul_(scale)


def _add(weight: Any, delta: Any) -> Any:
    """`weight` plus `delta`, in place: widened, added and rounded once."""
    for narrow, wide in zip(weight.view(-1).split(PIECE_ELEMENTS), delta.view(-1).split(PIECE_ELEMENTS), strict=True):
        narrow.copy_(wide.add_(narrow))
    return weight


def _in_turn(made: Iterator[T], bench: Bench) -> Iterator[T]:
    """What an iterator gives, each made while nobody else makes anything."""
    while True:
        with bench.turn:
            one = next(made, None)
        if one is None:
            return
        yield one


def _prepare(threads: int) -> None:
    """CPU threads of a matrix product; and freed weights go back to the system at once.

    glibc raises its threshold for mmap with every large block that is freed, up to 32 MiB, and
    then keeps such blocks, thread by thread; a threshold that is set stays (man 3 mallopt).
    """
    torch.set_num_threads(threads)
    # Another C library has no mallopt, and needs none.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
