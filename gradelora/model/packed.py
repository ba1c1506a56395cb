"""gpt-oss experts that stay MXFP4 in memory and are dequantised a layer at a time.

Forward and backward call the grouped matrix product that transformers' bf16 experts call, on
the same weights in the same layout, so losses and gradients equal theirs bit for bit.
"""

from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import _grouped_mm as grouped_mm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gradelora.model.mxfp4 import BLOCK, dequantize


class _PackedMatmul(torch.autograd.Function):
    """inputs[S, K] @ weights[E, K, R], rows grouped by expert; only `inputs` has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        blocks: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor,
        dtype: torch.dtype,
        chunk: int,
        keep: bool,
    ) -> torch.Tensor:
        """offsets[E]: where each expert's rows end.  `keep` holds the dequantised weights for backward."""
        ctx.save_for_backward(blocks, scales, offsets)
        ctx.dtype, ctx.chunk, ctx.kept = dtype, chunk, None
        if chunk and chunk < len(blocks):
            return _chunked(inputs, blocks, scales, offsets, dtype, chunk, transposed=False)
        weights = dequantize(blocks, scales, dtype)
        if keep:
            ctx.kept = weights
        return grouped_mm(inputs, weights, offs=offsets)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of `inputs` alone: the experts are frozen."""
        blocks, scales, offsets = ctx.saved_tensors
        if ctx.chunk and ctx.chunk < len(blocks):
            rows = _chunked(grad, blocks, scales, offsets, ctx.dtype, ctx.chunk, transposed=True)
            return rows, None, None, None, None, None, None
        weights = dequantize(blocks, scales, ctx.dtype) if ctx.kept is None else ctx.kept
        ctx.kept = None
        return grouped_mm(grad, weights.transpose(-2, -1), offs=offsets), None, None, None, None, None, None


def _chunked(
    rows: torch.Tensor,
    blocks: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor,
    dtype: torch.dtype,
    chunk: int,
    *,
    transposed: bool,
) -> torch.Tensor:
    """The same product with `chunk` experts dequantised at a time."""
    ends = [0, *offsets.tolist()]
    parts = []
    for first in range(0, len(blocks), chunk):
        last = min(first + chunk, len(blocks))
        if ends[first] == ends[last]:
            continue
        weights = dequantize(blocks[first:last], scales[first:last], dtype)
        weights = weights.transpose(-2, -1) if transposed else weights
        parts.append(grouped_mm(rows[ends[first] : ends[last]], weights, offs=offsets[first:last] - ends[first]))
    return torch.cat(parts)


class PackedExperts(nn.Module):
    """In place of GptOssExperts, with the checkpoint's own names: `gate_up_proj_blocks`, ...

    Blocks and scales are parameters without gradient: buffers would enter every DeepSpeed
    checkpoint.  `keep_recomputed` is for reentrant gradient checkpointing alone: the weights of
    the layer being recomputed are kept for its backward, two dequantisations a step, not three.
    """

    def __init__(self, config: Any, expert_chunk: int = 0) -> None:
        super().__init__()
        E, H, F = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.alpha, self.limit = E, config.swiglu_alpha, config.swiglu_limit
        self.expert_chunk, self.keep_recomputed = expert_chunk, False
        self.gate_up_proj_blocks = _bytes(E, 2 * F, H // BLOCK, BLOCK // 2)
        self.gate_up_proj_scales = _bytes(E, 2 * F, H // BLOCK)
        self.gate_up_proj_bias = nn.Parameter(torch.empty(E, 2 * F), requires_grad=False)
        self.down_proj_blocks = _bytes(E, H, F // BLOCK, BLOCK // 2)
        self.down_proj_scales = _bytes(E, H, F // BLOCK)
        self.down_proj_bias = nn.Parameter(torch.empty(E, H), requires_grad=False)

    _apply_gate = GptOssExperts._apply_gate

    def forward(
        self, hidden_NH: torch.Tensor, router_indices: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum over each token's experts [N, H]; the steps of transformers' `grouped_mm_experts_forward`."""
        top_k = router_indices.size(-1)
        expert_ids, order = torch.sort(router_indices.reshape(-1))
        counted = expert_ids.float() if expert_ids.device.type == "cpu" else expert_ids.int()
        counts = torch.histc(counted, bins=self.num_experts, min=0, max=self.num_experts - 1)
        offsets = torch.cumsum(counts, dim=0, dtype=torch.int32)
        states = self._product(hidden_NH[order // top_k], "gate_up_proj", offsets)
        states = self._apply_gate(states.add_(self.gate_up_proj_bias[expert_ids]))
        states = self._product(states, "down_proj", offsets).add_(self.down_proj_bias[expert_ids])
        states = states * routing_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.size(0), device=order.device)
        return states[back].view(hidden_NH.size(0), top_k, -1).sum(dim=1).to(hidden_NH.dtype)

    def _product(self, inputs: torch.Tensor, name: str, offsets: torch.Tensor) -> torch.Tensor:
        blocks, scales = getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales")
        dtype = getattr(self, f"{name}_bias").dtype
        # The first pass of a reentrant checkpoint runs without gradients, the recomputation with.
        keep = self.keep_recomputed and torch.is_grad_enabled()
        return _PackedMatmul.apply(inputs.to(dtype), blocks, scales, offsets, dtype, self.expert_chunk, keep)


def _bytes(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.uint8), requires_grad=False)


def pack_experts(model: nn.Module, config: Any, expert_chunk: int) -> None:
    """Swap every GptOssExperts of `model` (on the meta device) for PackedExperts, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GptOssExperts):
            parent, _, leaf = name.rpartition(".")
            with torch.device("meta"):
                setattr(model.get_submodule(parent), leaf, PackedExperts(config, expert_chunk))
