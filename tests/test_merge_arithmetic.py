"""Sums without torch have torch's bits: its matrix product, its rounding."""

import numpy as np
import pytest
import torch

from gradelora.merge.arithmetic import FEWEST_ROWS, HIGHEST_RANK, has_torchs_bits
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.floats import round_off, widen

SHAPES = [(32, 32), (33, 2880), (45, 1440), (364, 704), (2048, 720), (728, 2880)]


@pytest.mark.parametrize("rank", [1, 2, 7, 8, 16, 31, 64, HIGHEST_RANK])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_those_of_torch(rank: int, threads: int) -> None:
    rng = np.random.default_rng(rank)
    torch.set_num_threads(threads)
    for rows, columns in SHAPES:
        left, right = rng.standard_normal((rows, rank), np.float32), rng.standard_normal((rank, columns), np.float32)
        assert has_torchs_bits(left, right)
        theirs = torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()
        assert np.array_equal(left @ right, theirs), (rows, columns)


@pytest.mark.parametrize(("rows", "rank", "columns"), [(1, 8, 64), (FEWEST_ROWS - 1, 8, 64), (64, 8, 7), (64, 256, 64)])
def test_of_other_shapes_torch_is_asked(rows: int, rank: int, columns: int) -> None:
    assert not has_torchs_bits(np.zeros((rows, rank), np.float32), np.zeros((rank, columns), np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_values_are_rounded_as_torch_rounds_ties_and_subnormals_included(name: str, dtype: torch.dtype) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    bits[::3] &= 0xFFFF8000  # ties of bf16, and its own values
    bits[1::3] &= 0xFFFFF000  # those of f16
    bits[::7] &= 0x807FFFFF  # subnormal
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).to(dtype)
    finite = torch.isfinite(expected).numpy()
    stored = np.empty(int(finite.sum()), {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[name])
    tensor = Tensor(name="w", file="f", dtype=name, shape=stored.shape, start=0, end=stored.nbytes)
    round_off(values[finite], stored, np.empty(stored.shape, np.float32), tensor)
    theirs = expected[torch.from_numpy(finite)]
    width = torch.int32 if name == "F32" else torch.int16
    assert np.array_equal(stored.view(np.int32 if name == "F32" else np.int16), theirs.view(width).numpy())
    back = np.empty(stored.shape, np.float32)
    widen(stored, back)
    assert np.array_equal(back, theirs.float().numpy())
    assert 0.2 < finite.mean() < 1
