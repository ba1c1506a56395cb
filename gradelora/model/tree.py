"""Rows in which several continuations share what they have in common.

A row is a tree of tokens: each token names the one before it.  A token attends to its
ancestors and itself, and its position is its depth, so every path from the root computes
exactly what it would compute in a row of its own (window attention counts positions, too).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class TokenTree:
    """ids[T] and parents[T]; a parent stands before its children, -1 is the root's."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def extend(self, parent: int, ids: Sequence[int]) -> int:
        """Append a path below `parent` (-1: the start); returns the index of its last token."""
        for token in ids:
            self.ids.append(token)
            self.parents.append(parent)
            parent = len(self.ids) - 1
        return parent

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
