"""Answers behind the prefixes that they share: a prefix runs once, its keys and values stay.

Behind it every answer is a row of its own, a tree of tokens (see gradelora.model.tree), so
attention grows with one answer and not with all that share a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from gradelora.model.tree import Masking, TokenTree


@dataclass(frozen=True)
class Branch:
    """One answer behind prefix number `prefix`, its trie below it; `leaf` is its last token, the trie follows."""

    prompt: int
    prefix: int
    tree: TokenTree
    leaf: int


def prefix_cache(
    model: Any, prefixes: Sequence[tuple[int, ...]], pad_id: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of G prefixes by layer: [G, heads, P, D] each, shorter ones filled up at their end."""
    longest = max(map(len, prefixes))
    if not longest:
        return []
    ids_GP = torch.tensor([[*prefix, *[pad_id] * (longest - len(prefix))] for prefix in prefixes])
    # Without a config no layer drops what its window has passed: branches begin at different depths.
    cache = DynamicCache()
    # No mask: a token sees none that come after it, and padding does.
    device = model.get_input_embeddings().weight.device
    model(input_ids=ids_GP.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def forward(
    model: Any,
    masking: Masking,
    prefixes: Sequence[tuple[int, ...]],
    keys_values: Sequence[tuple[torch.Tensor, torch.Tensor]],
    batch: Sequence[Branch],
    pad_id: int,
) -> tuple[torch.Tensor, list[list[int]]]:
    """logits[K, V] where a candidate's token is predicted, and where[b][node] among the K."""
    device = model.get_input_embeddings().weight.device
    behind = [branch.prefix for branch in batch]
    lengths_B = np.array([len(prefixes[g]) for g in behind])
    longest = max(len(branch.tree) for branch in batch)
    ids_BL = np.full((len(batch), longest), pad_id, dtype=np.int64)
    positions_BL = np.repeat(lengths_B[:, None], longest, axis=1)
    keep_BL = np.zeros((len(batch), longest), dtype=np.bool_)
    for b, branch in enumerate(batch):
        size = len(branch.tree)
        ids_BL[b, :size] = branch.tree.ids
        positions_BL[b, :size] += branch.tree.depths()
        keep_BL[b, branch.leaf : size] = True
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(keys_values):
        cache.update(_by_row(keys, behind), _by_row(values, behind), layer)
    masks = _masks([branch.tree for branch in batch], positions_BL, lengths_B, masking)
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


def _by_row(of_prefixes: torch.Tensor, behind: Sequence[int]) -> torch.Tensor:
    """[B, heads, P, D] of [G, heads, P, D]: no copy where there is one prefix."""
    return of_prefixes.expand(len(behind), -1, -1, -1) if len(of_prefixes) == 1 else of_prefixes[list(behind)]


def _masks(trees: Sequence[TokenTree], positions_BL: Any, lengths_B: Any, masking: Masking) -> Any:
    """Additive masks [B, 1, L, P + L]: a token sees its prefix, its ancestors and itself, within the window.

    A padding token sees the prefix and itself.  One mask a kind of layer where the model wants that.
    """
    B, L = positions_BL.shape
    columns_P = np.arange(lengths_B.max(), dtype=np.int32)
    hides_BLK = np.ones((B, L, len(columns_P) + L), dtype=np.bool_)
    hides_BLK[:, :, : len(columns_P)] = (columns_P >= lengths_B[:, None])[:, None, :]
    hides_BLK[:, :, len(columns_P) :] = ~np.eye(L, dtype=np.bool_)
    for b, tree in enumerate(trees):
        size = len(tree)
        hides_BLK[b, :size, len(columns_P) : len(columns_P) + size] = ~tree.ancestors()
    at_BL = positions_BL.astype(np.int32)
    at_BK = np.concatenate([np.broadcast_to(columns_P, (B, len(columns_P))), at_BL], axis=1)
    masks = {}
    for kind, window in masking.windows.items():
        hides = hides_BLK
        if window is not None:
            hides = hides_BLK | (at_BL[:, :, None] - at_BK[:, None, :] >= window)
        hidden = torch.from_numpy(hides).unsqueeze(1)
        masks[kind] = torch.zeros(hidden.shape, dtype=masking.dtype).masked_fill_(
            hidden, torch.finfo(masking.dtype).min
        )
    return masks if masking.keyed else masks[""]


def _placed(masks: Any, device: Any) -> Any:
    """One mask or a dict of them, where the model is."""
    return {kind: mask.to(device) for kind, mask in masks.items()} if isinstance(masks, dict) else masks.to(device)
