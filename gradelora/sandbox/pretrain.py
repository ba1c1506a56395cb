"""Pretrain the tiny base in full, so that it follows the format and counts what it has learned to count.

Answers to one question share its tokens in a row.  The loss is that of the target, and a
little language modelling on the answers, without which the base would know no words.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradelora.model.tree import TokenTree, tree_inputs
from gradelora.prompt import Layout
from gradelora.sandbox.answers import Question, Written
from gradelora.sandbox.curriculum import curriculum_questions, lessons

if TYPE_CHECKING:
    import torch

STEPS = 150
WARMUP_STEPS = 10
ROWS = 4
ANSWERS_PER_ROW = 8
LEARNING_RATE = 2e-3
# Small, because one token of the twelve of a target tells the score: their mean hides its loss.
ANSWER_WEIGHT = 0.02


@dataclass(frozen=True)
class _Row:
    """A tree, and for each supervised token the place that predicts it, the token, and its weight."""

    tree: TokenTree
    places: tuple[int, ...]
    tokens: tuple[int, ...]
    weights: tuple[float, ...]


def pretrain(model: Any, layout: Layout, *, seed: int) -> float:
    """Train all weights of `model` in place; returns the mean target loss of the last ten steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _share)
    supply = lessons(curriculum_questions(), ANSWERS_PER_ROW, seed)
    model.train()
    losses = []
    for _ in range(STEPS):
        rows = [_row(layout, question, written) for question, written in itertools.islice(supply, ROWS)]
        target_loss, answer_loss = _losses(model, rows, layout.pad_token_id)
        optimizer.zero_grad()
        (target_loss + ANSWER_WEIGHT * answer_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(target_loss.detach()))
    model.eval()
    return sum(losses[-10:]) / 10


def _share(step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))


def _row(layout: Layout, question: Question, written: Sequence[Written]) -> _Row:
    tree = TokenTree()
    root = tree.extend(-1, layout.prefix(question.question, question.rubric, question.max_score))
    places, tokens, weights = [], [], []
    for one in written:
        answer, target = layout.answer(one.text), layout.target(one.true_score, None)
        first = len(tree)
        tree.extend(root, [*answer, *layout.closing, *target])
        for index in range(first, len(tree)):
            weight = 1.0 if index >= len(tree) - len(target) else 0.0 if index >= first + len(answer) else ANSWER_WEIGHT
            places.append(tree.parents[index])
            tokens.append(tree.ids[index])
            weights.append(weight)
    return _Row(tree, tuple(places), tuple(tokens), tuple(weights))


def _losses(model: Any, rows: Sequence[_Row], pad_id: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Mean cross-entropy over the target's tokens and over the answers'."""
    import torch

    inputs = tree_inputs([row.tree for row in rows], pad_id=pad_id, model=model)
    keep = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        keep[number, list(row.places)] = True
    where = (keep.flatten().cumsum(0) - 1).view(keep.shape)
    at = torch.cat([where[number, list(row.places)] for number, row in enumerate(rows)])
    tokens = torch.tensor([token for row in rows for token in row.tokens])
    weights = torch.tensor([weight for row in rows for weight in row.weights])
    logits_KV = model(**inputs, logits_to_keep=keep, use_cache=False).logits.squeeze(0)
    losses = torch.nn.functional.cross_entropy(logits_KV[at], tokens, reduction="none")
    return losses[weights == 1].mean(), losses[weights == ANSWER_WEIGHT].mean()
