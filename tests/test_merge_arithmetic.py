"""Sums without torch have torch's bits: its matrix product, its rounding."""

import importlib.util
import platform

import numpy as np
import pytest
import torch

from gradelora.merge import matmul
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.floats import round_into, widened

SHAPES = [(1, 1), (1, 64), (64, 1), (5, 7), (33, 2880), (364, 1440), (2048, 720)]


@pytest.mark.parametrize("rank", [1, 2, 7, 8, 16, 64, 129, 256])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_those_of_torch(rank: int, threads: int) -> None:
    rng = np.random.default_rng(rank)
    for rows, columns in SHAPES:
        left, right = rng.standard_normal((rows, rank), np.float32), rng.standard_normal((rank, columns), np.float32)
        ours = np.empty((rows, columns), np.float32)
        matmul.multiply(left, right, ours, threads)
        assert np.array_equal(ours, torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()), (rows, columns)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch has MKL on x86-64 alone")
def test_torchs_library_serves_without_torch_and_torch_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert matmul._kernel() is not matmul._by_torch
    matmul._kernel.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(matmul.ctypes, "CDLL", lambda path: object())
        assert matmul._kernel() is matmul._by_torch
    matmul._kernel.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        assert matmul._kernel() is matmul._by_torch
    matmul._kernel.cache_clear()


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
    round_into(stored, values[finite], tensor)
    theirs = expected[torch.from_numpy(finite)]
    width = torch.int32 if name == "F32" else torch.int16
    assert np.array_equal(stored.view(np.int32 if name == "F32" else np.int16), theirs.view(width).numpy())
    assert np.array_equal(widened(stored), theirs.float().numpy())
    assert 0.2 < finite.mean() < 1
