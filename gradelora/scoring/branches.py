"""Answers behind the prefix that they share: the prefix runs once, its keys and values stay.

Behind it every answer is a row of its own, a tree of tokens (see gradelora.model.tree), so
attention grows with one answer and not with all that share a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from gradelora.model.tree import Masking, TokenTree

# Answers in a forward pass, for every row that the caller allows, and their tokens.
ANSWERS_PER_ROW = 8
TOKENS_PER_ROW = 2048


@dataclass(frozen=True)
class Branch:
    """One answer with its trie below it; `leaf` is the answer's last token, the trie follows it."""

    prompt: int
    tree: TokenTree
    leaf: int


@dataclass(frozen=True)
class Pass:
    """One forward pass: the prompts whose answers stand behind `prefix`, longest first.

    `tokens` is what it costs: its padded tokens, and the prefix's where it is the first behind it.
    """

    prefix: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: int


def passes(prefix: tuple[int, ...], lengths: Sequence[tuple[int, int]], rows_per_pass: int) -> Iterator[Pass]:
    """Passes bounded by their answers and their padded tokens, from (prompt, tokens of its branch), longest first."""
    started, cost = 0, len(prefix)
    for end in range(1, len(lengths) + 1):
        size, longest = end - started, lengths[started][1]
        full = size == rows_per_pass * ANSWERS_PER_ROW or (size + 1) * longest > rows_per_pass * TOKENS_PER_ROW
        if full or end == len(lengths):
            yield Pass(prefix, tuple(prompt for prompt, _ in lengths[started:end]), cost + size * longest)
            started, cost = end, 0


def share(whole: Sequence[Pass], rank: int, ranks: int) -> list[Pass]:
    """The passes of one of `ranks` processes: a stretch of about equal cost.

    A stretch, not every n-th: so no more than one prefix a border is computed twice.
    """
    total = sum(one.tokens for one in whole)
    before, found = 0, []
    for one in whole:
        if (2 * before + one.tokens) * ranks // (2 * total) == rank:
            found.append(one)
        before += one.tokens
    return found


def prefix_cache(model: Any, prefix: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of the prefix by layer: [1, heads, P, D] each."""
    if not prefix:
        return []
    ids = torch.tensor([prefix], device=model.get_input_embeddings().weight.device)
    # Without a config no layer drops what its window has passed: branches begin at different depths.
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def forward(
    model: Any,
    masking: Masking,
    prefix: tuple[int, ...],
    keys_values: Sequence[tuple[torch.Tensor, torch.Tensor]],
    batch: Sequence[Branch],
    pad_id: int,
) -> tuple[torch.Tensor, list[list[int]]]:
    """logits[K, V] where a candidate's token is predicted, and where[b][node] among the K."""
    device = model.get_input_embeddings().weight.device
    longest = max(len(branch.tree) for branch in batch)
    ids_BL = np.full((len(batch), longest), pad_id, dtype=np.int64)
    positions_BL = np.full((len(batch), longest), len(prefix), dtype=np.int64)
    keep_BL = np.zeros((len(batch), longest), dtype=np.bool_)
    for b, branch in enumerate(batch):
        size = len(branch.tree)
        ids_BL[b, :size] = branch.tree.ids
        positions_BL[b, :size] += branch.tree.depths()
        keep_BL[b, branch.leaf : size] = True
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(keys_values):
        cache.update(keys.expand(len(batch), -1, -1, -1), values.expand(len(batch), -1, -1, -1), layer)
    masks = _masks([branch.tree for branch in batch], positions_BL, len(prefix), masking)
    logits_KV = model(
        input_ids=torch.from_numpy(ids_BL).to(device),
        position_ids=torch.from_numpy(positions_BL).to(device),
        attention_mask=_placed(masks, device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.from_numpy(keep_BL).to(device),
    ).logits
    where = (keep_BL.ravel().cumsum() - 1).reshape(keep_BL.shape).tolist()
    return logits_KV, where


def _masks(trees: Sequence[TokenTree], positions_BL: Any, prefix_length: int, masking: Masking) -> Any:
    """Additive masks [B, 1, L, P + L]: a token sees the prefix, its ancestors and itself, within the window.

    A padding token sees the prefix and itself.  One mask a kind of layer where the model wants that.
    """
    L = positions_BL.shape[1]
    sees_BLK = np.zeros((len(trees), L, prefix_length + L), dtype=np.bool_)
    sees_BLK[:, :, :prefix_length] = True
    sees_BLK[:, :, prefix_length:] = np.eye(L, dtype=np.bool_)
    for b, tree in enumerate(trees):
        size = len(tree)
        sees_BLK[b, :size, prefix_length : prefix_length + size] = tree.ancestors()
    shared = np.broadcast_to(np.arange(prefix_length), (len(trees), prefix_length))
    distance_BLK = positions_BL[:, :, None] - np.concatenate([shared, positions_BL], axis=1)[:, None, :]
    masks = {}
    for kind, window in masking.windows.items():
        seen = sees_BLK if window is None else sees_BLK & (distance_BLK < window)
        hidden = torch.from_numpy(~seen).unsqueeze(1)
        masks[kind] = torch.zeros(hidden.shape, dtype=masking.dtype).masked_fill(hidden, torch.finfo(masking.dtype).min)
    return masks if masking.keyed else masks[""]


def _placed(masks: Any, device: Any) -> Any:
    """One mask or a dict of them, where the model is."""
    return {kind: mask.to(device) for kind, mask in masks.items()} if isinstance(masks, dict) else masks.to(device)
