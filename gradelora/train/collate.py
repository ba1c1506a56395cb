"""From planned rows to the model's inputs, and the proof that loss falls on targets alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradelora.errors import LossMisplaced
from gradelora.model.tree import Masking, TokenTree, tree_batch
from gradelora.rows import Items, Row

IGNORED = -100


@dataclass(frozen=True)
class RowCollator:
    """Rows to a batch: the tree's inputs and `shift_labels`[B, L].

    `shift_labels` holds, at the token that predicts it, each token of a target; elsewhere -100.
    `labels` is the same tensor: the Trainer looks for one by that name.
    """

    items: Items
    pad_id: int
    masking: Masking

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One micro-batch, padded to its longest row."""
        grown = [self._row(row) for row in rows]
        batch = tree_batch([tree for tree, _ in grown], pad_id=self.pad_id, masking=self.masking)
        labels_BL = torch.full_like(batch["input_ids"], IGNORED)
        for index, (_, labels) in enumerate(grown):
            for position, token in labels:
                labels_BL[index, position] = token
        return {**batch, "labels": labels_BL, "shift_labels": labels_BL}

    def _row(self, row: Row) -> tuple[TokenTree, list[tuple[int, int]]]:
        """The row's tree, and (predicting position, token) of all its targets."""
        tree = TokenTree()
        labels: list[tuple[int, int]] = []
        if not row:
            tree.extend(-1, [self.pad_id])
            return tree, labels
        shared = self.items.shared(row)
        first = self.items.tokens(row[0])
        fork = tree.extend(-1, first[:shared])
        for item in row:
            tokens, prompt_length = self.items.tokens(item), int(self.items.prompt_lengths[item])
            if tokens[:shared] != first[:shared]:
                raise LossMisplaced(f"item {item}: its prefix is not that of item {row[0]}, with which it shares a row")
            last = tree.extend(fork, tokens[shared:prompt_length])
            for token in tokens[prompt_length:]:
                labels.append((last, token))
                last = tree.extend(last, [token])
        return tree, labels


def supervised(batch: dict[str, Any]) -> list[list[list[int]]]:
    """Per row, the runs of ids that carry loss, as the batch alone tells them.

    A run goes on while the next token is the one that was just asked for.
    """
    found = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["shift_labels"].tolist(), strict=True):
        runs: list[list[int]] = []
        previous = None
        for position, label in enumerate(labels):
            if label == IGNORED:
                continue
            goes_on = previous == position - 1 and ids[position] == labels[position - 1]
            if goes_on:
                runs[-1].append(label)
            else:
                runs.append([label])
            previous = position
        found.append(runs)
    return found


def prompts(batch: dict[str, Any], kind: str | None) -> list[list[list[int]]]:
    """Per row and run, the ids from which the run's first token is predicted: what its query attends to.

    `kind` chooses one of several masks; None: there is only one.
    """
    mask = batch["attention_mask"] if kind is None else batch["attention_mask"][kind]
    found = []
    for row, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["shift_labels"].tolist(), strict=True)):
        starts = [
            p
            for p, label in enumerate(labels)
            if label != IGNORED and (p == 0 or labels[p - 1] == IGNORED or ids[p] != labels[p - 1])
        ]
        found.append([[ids[j] for j in torch.nonzero(mask[row, 0, p] == 0)[:, 0].tolist()] for p in starts])
    return found


def prove(batch: dict[str, Any], rows: Sequence[Row], collator: RowCollator) -> None:
    """Raise LossMisplaced unless the batch asks exactly for the targets, each from exactly its own prompt."""
    items, windows = collator.items, collator.masking.windows
    kind = min(windows, key=lambda name: (windows[name] is not None, name))
    seen, conditions = supervised(batch), prompts(batch, kind if collator.masking.keyed else None)
    for index, row in enumerate(rows):
        targets = [items.target(item) for item in row]
        if [] in targets:
            raise LossMisplaced(f"items {row}: a target is empty, so there is nothing to learn from it; encode again")
        if seen[index] != targets:
            raise LossMisplaced(
                f"row {index}: {sum(map(len, seen[index]))} tokens in {len(seen[index])} runs carry loss, "
                f"{sum(map(len, targets))} in {len(targets)} targets should; this is a fault of the collator"
            )
        wanted = [items.tokens(item)[: int(items.prompt_lengths[item])] for item in row]
        # Where every layer has a window, a query sees the end of its prompt alone.
        window = windows[kind] or 0
        wanted = [prompt[-window:] for prompt in wanted]
        if conditions[index] != wanted:
            raise LossMisplaced(f"row {index}: a target does not see exactly its own prompt; a fault of the masks")
