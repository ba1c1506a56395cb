import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gradelora.model.mxfp4 import FP4_VALUES, dequantize, quantize

BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


def random_packed(experts: int = 3, rows: int = 64, groups: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8, generator=generator)
    # 255 means NaN and occurs in no checkpoint.
    scales = torch.arange(experts * rows * groups).remainder(255).to(torch.uint8)
    return blocks, scales.reshape(experts, rows, groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dequantised_weights_equal_those_of_transformers_bit_for_bit_at_every_scale(dtype: torch.dtype) -> None:
    blocks, scales = random_packed()
    ours, theirs = dequantize(blocks, scales, dtype), convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert ours.shape == (3, 128, 64)
    assert ours.is_contiguous()
    assert torch.equal(ours.view(BITS[dtype]), theirs.view(BITS[dtype]))


def test_experts_dequantised_in_parts_equal_those_dequantised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, scales = random_packed()
    whole = dequantize(blocks, scales)
    monkeypatch.setattr("gradelora.model.mxfp4._CPU_CHUNK", 1)
    assert torch.equal(dequantize(blocks, scales), whole)


def test_swapped_nibbles_are_other_weights() -> None:
    blocks, scales = random_packed()
    swapped = (blocks >> 4) | (blocks << 4)
    assert not torch.equal(dequantize(swapped, scales), dequantize(blocks, scales))


def test_quantising_dequantised_weights_loses_nothing() -> None:
    blocks, scales = random_packed()
    weights = dequantize(blocks, scales.clamp(8, 240), torch.float32)
    assert torch.equal(dequantize(*quantize(weights), torch.float32), weights)


def test_every_weight_goes_to_its_nearest_value_and_ties_to_the_even_code() -> None:
    grid = torch.tensor(FP4_VALUES[:8])
    halfway = (grid[1:] + grid[:-1]) / 2
    nearest = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    row = torch.zeros(32)
    row[:7], row[7:14], row[14:21] = halfway, -halfway, halfway + 0.01
    row[31] = 6.0  # fixes the scale at 1
    blocks, scales = quantize(row.reshape(1, 32, 1).expand(1, 32, 2))
    assert scales.unique().tolist() == [127]
    found = dequantize(blocks, scales, torch.float32)[0, :, 0]
    assert torch.equal(found[:7], nearest)
    assert torch.equal(found[7:14], -nearest)
    assert torch.equal(found[14:21], grid[1:])


def test_the_largest_weight_of_a_block_is_never_clipped() -> None:
    weights = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1)) * 7
    error = (dequantize(*quantize(weights), torch.float32) - weights).abs()
    largest = weights.reshape(2, 2, 32, 8).abs().amax(dim=2, keepdim=True)
    # Half the widest gap (4 to 6) at a scale at which the largest weight is above 3.
    assert bool((error.reshape(2, 2, 32, 8) <= largest / 3).all())


def test_zeros_stay_zero() -> None:
    blocks, scales = quantize(torch.zeros(1, 32, 2))
    assert torch.equal(dequantize(blocks, scales), torch.zeros(1, 32, 2, dtype=torch.bfloat16))


def test_rows_that_do_not_fill_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        quantize(torch.zeros(1, 33, 2))
