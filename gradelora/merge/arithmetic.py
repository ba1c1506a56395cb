"""The sum of a weight and its LoRA update, bit for bit as PEFT's merge_and_unload makes it on a CPU.

Linear layers need no torch (gradelora.merge.matmul says why); experts do.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradelora.merge.checkpoint import Tensor
from gradelora.merge.floats import bytes_of, read_float32, read_rows, round_into, widened
from gradelora.merge.matmul import multiply
from gradelora.merge.regions import Bench
from gradelora.merge.targets import ExpertTarget, Target

T = TypeVar("T")
# From malloc.h.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 2**20
# So much of a weight is read, updated and handed on at a time: in float32 it stays in the processor's cache.
PART_ELEMENTS = 2**16


class Arithmetic:
    """The sums of one merge, one at a time, on `threads` CPU threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        _return_freed_memory()

    def merged(self, target: Target, bench: Bench) -> Iterator[memoryview]:
        """The new data of `target.weight`, some rows at a time: memory is not that of a vocabulary.

        PEFT holds the factors in float32, multiplies there and adds in place, which rounds once:
        W = (W.float() + B @ A * scale).to(W.dtype).  DoRA: variants.py, DoraLinearVariant.
        Raises UnsupportedModel where the sum is not finite.
        """
        lora_a, lora_b = (read_float32(bench.adapter, factor) for factor in (target.lora_a, target.lora_b))
        magnitude = read_float32(bench.adapter, target.magnitude) if target.magnitude else None
        rows, columns = target.weight.shape
        # Parts alike: a last one of a single row would be multiplied by another kernel.
        parts = max(1, rows * columns // PART_ELEMENTS)
        summed = np.empty((-(-rows // parts), columns), np.float32)
        for part in np.array_split(np.arange(rows), parts):
            # What is not finite is refused, not warned of.
            with bench.turn, np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                first, last = int(part[0]), int(part[-1]) + 1
                weight = read_rows(bench.base(target.weight.file), target.weight, first, last)
                delta = self._delta(lora_b[first:last], lora_a, target.scale, summed)
                delta += widened(weight)
                if magnitude is not None:
                    delta *= (magnitude[first:last] / np.linalg.norm(delta, axis=1))[:, None]
                round_into(weight, delta, target.weight)
            yield bytes_of(weight)

    def requantized(self, target: ExpertTarget, bench: Bench) -> Iterator[tuple[memoryview, memoryview]]:
        """Blocks and scales of one expert after another; what they keep of the update goes to `bench`."""
        experts = self._experts()
        factors = experts.Factors(target, bench.adapter)
        made = experts.requantized(target, factors, lambda tensor: bench.base(tensor.file))
        for blocks, scales, survival in _in_turn(made, bench):
            bench.survivals.append(survival)
            yield blocks, scales

    def experts_bf16(
        self, shape: tuple[int, int, int], stored: tuple[Tensor, ...], target: ExpertTarget | None, bench: Bench
    ) -> Iterator[memoryview]:
        """One expert's matrix after another, in bf16.  Raises UnsupportedModel where a sum is not finite."""
        experts = self._experts()
        factors = experts.Factors(target, bench.adapter) if target else None
        yield from _in_turn(experts.in_bf16(shape, stored, factors, lambda tensor: bench.base(tensor.file)), bench)

    def _experts(self) -> ModuleType:
        """gradelora.merge.experts, which imports torch."""
        import torch

        from gradelora.merge import experts

        torch.set_num_threads(self._threads)
        return experts

    def _delta(
        self, lora_b: NDArray[np.float32], lora_a: NDArray[np.float32], scale: float, room: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """B[R', r] @ A[r, in] * scale, in the first rows of `room`."""
        delta = room[: len(lora_b)]
        multiply(lora_b, lora_a, delta, self._threads)
        delta *= np.float32(scale)
        return delta


def _in_turn(made: Iterator[T], bench: Bench) -> Iterator[T]:
    """What an iterator gives, each made while nobody else makes anything."""
    while True:
        with bench.turn:
            one = next(made, None)
        if one is None:
            return
        yield one


def _return_freed_memory() -> None:
    """Freed weights go back to the system at once.

    glibc raises its threshold for mmap with every large block that is freed, up to 32 MiB, and
    then keeps such blocks, thread by thread; a threshold that is set stays (man 3 mallopt).
    """
    # Another C library has no mallopt, and needs none.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
