"""MXFP4 (OCP Microscaling v1.0): 32 weights share one power of two, each weight is 4 bits (e2m1).

The layout is that of gpt-oss checkpoints and of transformers' integrations/mxfp4.py: a weight
that multiplies from the right, [E, K, R], is stored as `blocks` uint8[E, R, K/32, 16] (two
weights a byte, the lower nibble first) and `scales` uint8[E, R, K/32] (exponent + 127).
"""

import functools

import torch

BLOCK = 32
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BLOCKS_SUFFIX, SCALES_SUFFIX = "_blocks", "_scales"
# Halfway between neighbours of 0 .5 1 1.5 2 3 4 6; a tie goes to the even code, so every other one rounds down.
_HALFWAY = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))
# Weights converted at a time on a CPU: the intermediate tables' output stays in the cache.
_CPU_CHUNK = 2**22


@functools.cache
def _quads(device: torch.device) -> torch.Tensor:
    """int64[65536]: the bits of the four bf16 weights of two bytes, both lower nibbles first."""
    pair = torch.arange(65536)
    low, high = pair & 255, pair >> 8
    values = torch.tensor(FP4_VALUES, dtype=torch.bfloat16)
    four = torch.stack([values[low & 15], values[high & 15], values[low >> 4], values[high >> 4]], dim=1)
    return four.contiguous().view(torch.int64)[:, 0].to(device)


@functools.cache
def _powers(device: torch.device) -> torch.Tensor:
    """bf16[256]: 2 ** (scale - 127); both ends are subnormal or infinite, as in transformers."""
    return torch.pow(2.0, torch.arange(256) - 127).to(torch.bfloat16).to(device)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Weights [E, K, R], contiguous, of blocks [E, R, K/32, 16] and scales [E, R, K/32].

    Bit for bit transformers' `convert_moe_packed_tensors`.  Every weight is exact in bf16, so a
    wider `dtype` is a cast of it.  Raises ValueError for an odd R.
    """
    E, R, G, B = blocks.shape
    if R % 2 or scales.shape != (E, R, G):
        raise ValueError(f"MXFP4 blocks {tuple(blocks.shape)} with scales {tuple(scales.shape)}: rows must be even")
    K = G * B * 2
    weights = torch.empty(E, K, R, dtype=torch.bfloat16, device=blocks.device)
    step = max(1, _CPU_CHUNK // (K * R)) if blocks.device.type == "cpu" else E
    for first in range(0, E, step):
        part = slice(first, first + step)
        # Bytes are transposed before they are looked up: a quarter of the weights' size.
        rows = blocks[part].reshape(-1, R, K // 2).transpose(1, 2).contiguous().view(torch.uint16)
        quads = _quads(blocks.device).index_select(0, rows.reshape(-1).int()).view(torch.int32)
        halves = weights[part].view(torch.int32).view(-1, K // 2, 2, R // 2)
        halves.copy_(quads.view(-1, K // 2, R // 2, 2).transpose(2, 3))
        power = _powers(blocks.device).index_select(0, scales[part].reshape(-1).int()).view(-1, R, G)
        weights[part].view(-1, G, B * 2, R).mul_(power.transpose(1, 2).unsqueeze(2))
    return weights if dtype == torch.bfloat16 else weights.to(dtype)


def quantize(weight_EKR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks uint8[E, R, K/32, 16] and scales uint8[E, R, K/32] nearest to weights [E, K, R].

    The scale is the smallest power of two at which the block's largest weight stays within 6
    (triton_kernels' `downcast_to_mxfp`, rounding the scale up), so nothing is clipped; weights
    round to nearest, ties to even.  Raises ValueError where K is no multiple of 32.
    """
    weight = _in_blocks(weight_EKR)
    exponent_bits = _exponents(weight)
    return _packed(_codes(weight, exponent_bits)), (exponent_bits >> 23).to(torch.uint8)


def requantize(weight_EKR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for weights that were MXFP4 before they were changed a little.

    A block whose largest weight was 6 and now lies just above would get twice the scale, and all
    its other weights would be rounded for its sake.  So half the scale, which clips the largest,
    is tried as well, and each block takes the one that lies nearer to it.
    """
    weight = _in_blocks(weight_EKR)
    upper = _exponents(weight)
    lower = (upper - (1 << 23)).clamp_(min=0)
    codes, clipped = _codes(weight, upper), _codes(weight, lower)
    nearer = _distance(weight, clipped, lower) < _distance(weight, codes, upper)
    chosen = torch.where(nearer.unsqueeze(-1), clipped, codes)
    return _packed(chosen), (torch.where(nearer, lower, upper) >> 23).to(torch.uint8)


def _in_blocks(weight_EKR: torch.Tensor) -> torch.Tensor:
    """float32[E, R, K/32, 32]: rows of the transposed weights, block by block."""
    E, K, R = weight_EKR.shape
    if K % BLOCK:
        raise ValueError(f"MXFP4 groups {BLOCK} weights: {K} of a row are no multiple of it")
    return weight_EKR.float().transpose(1, 2).reshape(E, R, K // BLOCK, BLOCK)


def _exponents(weight: torch.Tensor) -> torch.Tensor:
    """int32[E, R, G]: the bits of each block's scale, as a float32 power of two, rounded up."""
    largest = weight.abs().amax(dim=-1)
    # Adding all mantissa bits and clearing them rounds a positive float up to a power of two.
    return ((largest / 6).view(torch.int32) + 0x007FFFFF) & 0x7F800000


def _codes(weight: torch.Tensor, exponent_bits: torch.Tensor) -> torch.Tensor:
    """uint8[E, R, G, 32]: the 4 bits of each weight, nearest at this scale; beyond 6 is 6."""
    scale = exponent_bits.view(torch.float32)
    scaled = torch.where(scale > 0, 1 / scale, 0.0).unsqueeze(-1) * weight
    magnitude = scaled.abs()
    code = torch.zeros_like(scaled, dtype=torch.uint8)
    for halfway, rounds_up in _HALFWAY:
        code += (magnitude >= halfway) if rounds_up else (magnitude > halfway)
    return code | (torch.signbit(scaled).to(torch.uint8) << 3)


def _packed(code: torch.Tensor) -> torch.Tensor:
    return (code[..., 0::2] | (code[..., 1::2] << 4)).contiguous()


def _distance(weight: torch.Tensor, codes: torch.Tensor, exponent_bits: torch.Tensor) -> torch.Tensor:
    """float32[E, R, G]: squared distance of a block from what its codes stand for."""
    values = torch.tensor(FP4_VALUES, device=weight.device).index_select(0, codes.reshape(-1).int()).view_as(weight)
    return (values * exponent_bits.view(torch.float32).unsqueeze(-1) - weight).square().sum(-1)
