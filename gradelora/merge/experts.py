"""Expert weights with their LoRA updates: in bf16 as PEFT sums them, or rounded to MXFP4 again.

Memory is that of one expert's matrix in bf16 and of a piece of it in float32.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradelora.errors import UnsupportedModel
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.regions import Survival
from gradelora.merge.targets import ExpertTarget
from gradelora.merge.tensors import bytes_of, check_finite, read, read_first
from gradelora.model.mxfp4 import dequantize, requantize

# Weights that are widened to float32 at a time.
PIECE_ELEMENTS = 2**20
DIGITS = 4
# The descriptor of the file in which a tensor of the base lies.
Opened = Callable[[Tensor], int]


class Factors:
    """The update of one parameter: A[E, r, K] and B[R, r, E] in float32."""

    def __init__(self, target: ExpertTarget, adapter: int) -> None:
        E, K, R = target.shape
        self.name, self.scale = target.name, target.scale
        self._a = read(adapter, target.lora_a).float().reshape(E, target.rank, K)
        self._b = read(adapter, target.lora_b).float().reshape(R, target.rank, E)

    def rows(self, expert: int, first: int, last: int) -> Any:
        """Columns [first, last) of the update as rows: [R', K], as MXFP4 stores weights."""
        return (self._b[first:last, :, expert] @ self._a[expert]).mul_(self.scale)

    def matrix(self, expert: int) -> Any:
        """The update of one expert [K, R], by the product that PEFT's get_delta_weight makes."""
        one_b, one_a = self._b[:, :, expert : expert + 1], self._a[expert : expert + 1]
        return torch.einsum("ore,eri->eio", one_b, one_a)[0].mul_(self.scale)


def in_bf16(
    shape: tuple[int, int, int], stored: tuple[Tensor, ...], factors: Factors | None, opened: Opened
) -> Iterator[memoryview]:
    """The bytes of every expert's matrix [K, R] in bf16: W, or W + D.

    PEFT rounds the update to bf16 before it adds; so does this, that both agree bit for bit.
    """
    for expert in range(shape[0]):
        parts = [read_first(opened(tensor), tensor, expert) for tensor in stored]
        weight = parts[0] if len(parts) == 1 else dequantize(parts[0].unsqueeze(0), parts[1].unsqueeze(0))[0]
        if factors is not None:
            weight += factors.matrix(expert).to(torch.bfloat16)
            check_finite(f"{factors.name}, expert {expert}", weight)
        yield bytes_of(weight)


def requantized(
    target: ExpertTarget, factors: Factors, opened: Opened
) -> Iterator[tuple[memoryview, memoryview, Survival]]:
    """Every expert's blocks [R, K/32, 16] and scales [R, K/32] nearest to W + D, and what of D they kept."""
    E, K, R = target.shape
    step = max(2, PIECE_ELEMENTS // K // 2 * 2)
    for expert in range(E):
        blocks, scales = (read_first(opened(tensor), tensor, expert) for tensor in target.stored)
        updated = lost = along = 0.0
        for first in range(0, R, step):
            part = slice(first, min(first + step, R))
            update = factors.rows(expert, part.start, part.stop)
            before = _dequantized(blocks[part], scales[part])
            new_blocks, new_scales = requantize((before + update).T.unsqueeze(0))
            blocks[part], scales[part] = new_blocks[0], new_scales[0]
            change = _dequantized(blocks[part], scales[part]).sub_(before)
            updated += _dot(update, update)
            along += _dot(change, update)
            change -= update
            lost += _dot(change, change)
        yield bytes_of(blocks), bytes_of(scales), _survival(target.name, expert, updated, lost, along)


def _dequantized(blocks: Any, scales: Any) -> Any:
    """float32[R', K] of rows of blocks."""
    return dequantize(blocks.unsqueeze(0), scales.unsqueeze(0))[0].T.float().contiguous()


def _dot(one: Any, other: Any) -> float:
    return float(torch.dot(one.view(-1), other.view(-1)))


def _survival(name: str, expert: int, updated: float, lost: float, along: float) -> Survival:
    if not all(map(math.isfinite, (updated, lost, along))):
        raise UnsupportedModel(f"{name}: expert {expert} is not finite; the adapter is broken, train it again")
    return Survival(
        parameter=name,
        expert=expert,
        delta_norm=round(math.sqrt(updated), DIGITS),
        survival=round(1 - math.sqrt(lost / updated), DIGITS) if updated else None,
        projection=round(along / updated, DIGITS) if updated else None,
    )
