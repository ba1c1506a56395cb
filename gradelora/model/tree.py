"""Rows in which several continuations share what they have in common.

A row is a tree of tokens: each token names the one before it.  A token attends to its
ancestors and itself, and its position is its depth, so every path from the root computes
exactly what it would compute in a row of its own (window attention counts positions, too).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class TokenTree:
    """ids[T] and parents[T]; a parent stands before its children, -1 is the root's."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def extend(self, parent: int, ids: Sequence[int]) -> int:
        """Append a path below `parent` (-1: the start); returns the index of its last token."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.parents.extend([parent, *range(start, len(self.ids) - 1)][: len(ids)])
        return len(self.ids) - 1 if ids else parent

    def graft(self, parent: int, ids: Sequence[int], parents: Sequence[int]) -> None:
        """Append a tree below `parent`: its tokens name each other from 0 on, -1 names `parent`."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.parents.extend([parent if above < 0 else start + above for above in parents])

    def __len__(self) -> int:
        return len(self.ids)

    def depths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Position of every token in its own path: int64[T]."""
        depths = np.zeros(len(self), dtype=np.int64)
        for index, parent in enumerate(self.parents):
            depths[index] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    def ancestors(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool[T, T]: entry [i, j] says that i attends to j."""
        sees = np.eye(len(self), dtype=np.bool_)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                sees[index] |= sees[parent]
        return sees


@dataclass(frozen=True)
class Masking:
    """How a model takes its attention masks.

    `windows` names every kind of layer with its attention window in positions (None: no limit);
    `keyed` models take a dict of one mask a kind, others take the one mask itself.
    """

    windows: Mapping[str, int | None]
    keyed: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> "Masking":
        """Read it from a model's config and the type of its embeddings."""
        config = model.config
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        limited = {kind: window if kind == "sliding_attention" else None for kind in kinds}
        dtype = model.get_input_embeddings().weight.dtype
        return cls(windows=limited or {"": window}, keyed=bool(limited), dtype=dtype)


def tree_inputs(trees: Sequence[TokenTree], *, pad_id: int, model: Any) -> dict[str, Any]:
    """The rows as arguments of the model's forward (CPU tensors); see `tree_batch`."""
    return tree_batch(trees, pad_id=pad_id, masking=Masking.of(model))


def tree_batch(
    trees: Sequence[TokenTree], *, pad_id: int, masking: Masking, length: int | None = None
) -> dict[str, Any]:
    """input_ids[B, L], position_ids[B, L] and attention_mask [B, 1, L, L] (additive; a dict where keyed).

    Rows are padded on the right to the longest, or to `length`; a padding token sees itself alone.
    The window counts positions, never indices: a branch's first token is next to its parent.
    """
    L = length or max(len(tree) for tree in trees)
    ids_BL = np.full((len(trees), L), pad_id, dtype=np.int64)
    positions_BL = np.zeros((len(trees), L), dtype=np.int64)
    sees_BLL = np.broadcast_to(np.eye(L, dtype=np.bool_), (len(trees), L, L)).copy()
    for row, tree in enumerate(trees):
        size = len(tree)
        ids_BL[row, :size] = tree.ids
        positions_BL[row, :size] = tree.depths()
        sees_BLL[row, :size, :size] = tree.ancestors()
    masks = {
        kind: _additive(_within(sees_BLL, positions_BL, window), masking.dtype)
        for kind, window in masking.windows.items()
    }
    return {
        "input_ids": torch.from_numpy(ids_BL),
        "position_ids": torch.from_numpy(positions_BL),
        "attention_mask": masks if masking.keyed else masks[""],
    }


def _within(
    sees_BLL: np.ndarray[Any, np.dtype[np.bool_]], positions_BL: np.ndarray[Any, np.dtype[np.int64]], window: int | None
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if window is None or positions_BL.max() < window:
        return sees_BLL
    return sees_BLL & (positions_BL[:, :, None] - positions_BL[:, None, :] < window)


def _additive(sees_BLL: np.ndarray[Any, np.dtype[np.bool_]], dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, L, L]: 0 where a token is seen, the type's lowest number where not, as transformers' eager masks."""
    mask = torch.zeros((), dtype=dtype).expand(sees_BLL.shape)
    return mask.masked_fill(torch.from_numpy(~sees_BLL), torch.finfo(dtype).min).unsqueeze(1)
