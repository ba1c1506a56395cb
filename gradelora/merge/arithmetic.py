"""The sum of a weight and its LoRA update, bit for bit as PEFT's merge_and_unload makes it on a CPU.

To import torch takes longer than to copy gigabytes, so numpy multiplies where its kernel gives torch's
bits: each element a chain of fused additions over the rank.  That holds for matrices that are not
tiny, up to some rank (tests/test_merge_arithmetic.py); verifying a merge proves it for each product.
"""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradelora.merge.checkpoint import Tensor
from gradelora.merge.floats import STORED, bytes_of, read_float32, read_rows, round_off, widen
from gradelora.merge.regions import Bench
from gradelora.merge.targets import ADAPTER_WEIGHTS, ExpertTarget, Target

T = TypeVar("T")
# From malloc.h.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 2**20
# So much of a weight is read, updated and handed on at a time: in float32 it stays in the processor's cache.
PART_ELEMENTS = 2**16
# Of other shapes numpy's and torch's kernels add in another order.
HIGHEST_RANK, FEWEST_ROWS = 128, 32


class Arithmetic:
    """The sums of one merge, each on `threads` CPU threads; `by_torch` multiplies with nothing else."""

    def __init__(self, threads: int, *, by_torch: bool = False) -> None:
        self.threads, self._by_torch = threads, by_torch

    def merged(self, target: Target, bench: Bench) -> Iterator[memoryview]:
        """The new data of `target.weight`, some rows at a time, each valid until the next is asked for.

        PEFT holds the factors in float32, multiplies there and adds in place, which rounds once:
        W = (W.float() + B @ A * scale).to(W.dtype).  DoRA: variants.py, DoraLinearVariant.
        Raises UnsupportedModel where the sum is not finite.
        """
        lora_a, lora_b = (read_float32(bench.adapter, factor) for factor in (target.lora_a, target.lora_b))
        magnitude = read_float32(bench.adapter, target.magnitude) if target.magnitude else None
        weight, base = target.weight, bench.base(target.weight.file)
        parts = list(_parts(*weight.shape))
        shape = max(part.stop - part.start for part in parts), weight.shape[1]
        # Asking the system for memory costs more than a sum.
        of_types: tuple[type, ...] = (np.float32, np.float32, STORED[weight.dtype])
        whole: list[NDArray[Any]] = [np.empty(shape, kind) for kind in of_types]
        for part in parts:
            summed, room, stored = (array[: part.stop - part.start] for array in whole)
            read_rows(base, weight, part.start, stored)
            # What is not finite is refused, not warned of.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                self._delta(lora_b[part], lora_a, target.scale, summed)
                widen(stored, room)
                summed += room
                if magnitude is not None:
                    summed *= (magnitude[part] / np.linalg.norm(summed, axis=1))[:, None]
                round_off(summed, stored, room, weight)
            yield bytes_of(stored)

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

        torch.set_num_threads(self.threads)
        _return_freed_memory()
        return experts

    def _delta(
        self, lora_b: NDArray[np.float32], lora_a: NDArray[np.float32], scale: float, delta: NDArray[np.float32]
    ) -> None:
        """delta = B[R', r] @ A[r, in] * scale."""
        if self._by_torch or not has_torchs_bits(lora_b, lora_a):
            multiply_by_torch(lora_b, lora_a, delta, self.threads)
        else:
            multiply_by_numpy(lora_b, lora_a, delta)
        delta *= np.float32(scale)


def has_torchs_bits(lora_b: NDArray[np.float32], lora_a: NDArray[np.float32]) -> bool:
    """Whether numpy's product of these is trusted to be torch's."""
    rank, columns = lora_a.shape
    return rank <= HIGHEST_RANK and min(len(lora_b), columns) >= FEWEST_ROWS


def multiply_by_numpy(left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """out = left @ right, without torch."""
    np.matmul(left, right, out=out)


def multiply_by_torch(
    left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> None:
    """out = left @ right as PEFT makes it."""
    import torch

    torch.set_num_threads(threads)
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))


def products_differ(targets: Sequence[Target], adapter: Path, threads: int) -> bool:
    """Whether any product that numpy makes has another bit than torch's."""
    with (adapter / ADAPTER_WEIGHTS).open("rb") as file:
        for target in targets:
            lora_a, lora_b = (read_float32(file.fileno(), factor) for factor in (target.lora_a, target.lora_b))
            for part in _parts(*target.weight.shape):
                rows = lora_b[part]
                ours, theirs = (np.empty((len(rows), lora_a.shape[1]), np.float32) for _ in range(2))
                if has_torchs_bits(rows, lora_a):
                    multiply_by_numpy(rows, lora_a, ours)
                    multiply_by_torch(rows, lora_a, theirs, threads)
                    if not np.array_equal(ours, theirs):
                        return True
    return False


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Rows that are made at a time: parts alike, for a last one of a single row would be multiplied otherwise."""
    parts = max(1, min(rows // FEWEST_ROWS, rows * columns // PART_ELEMENTS))
    for part in np.array_split(np.arange(rows), parts):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _in_turn(made: Iterator[T], bench: Bench) -> Iterator[T]:
    """What an iterator gives, each made while nobody else makes anything."""
    while True:
        with bench.turn:
            one = next(made, None)
        if one is None:
            return
        yield one


def _return_freed_memory() -> None:
    """Freed matrices go back to the system at once.

    glibc raises its threshold for mmap with every large block that is freed, up to 32 MiB, and
    then keeps such blocks, thread by thread; a threshold that is set stays (man 3 mallopt).
    """
    # Another C library has no mallopt, and needs none.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
