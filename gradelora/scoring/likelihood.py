"""Scores by likelihood: every allowed score of an item as a whole answer, its end token included.

The tokens that all answers to a question share go through the model once; their keys and values
stay.  Behind them every answer is a row, beside answers to other questions.  Below an answer its
candidates share what they have in common in a trie, so a token that several need is computed once:

    prefix ─┬─ answer 1 ─┬─ "1" ── ".5"
            │            └─ "2"
            └─ answer 2 ─ ...

The log-probability of a candidate is the sum over its tokens, each read where the token before
it stands.  A candidate's last token is never fed: only its prediction is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradelora.model.tree import Masking, TokenTree
from gradelora.scoring.branches import Branch, forward, prefix_cache
from gradelora.scoring.candidates import Candidates, Likelihoods, Prompt
from gradelora.scoring.passes import Pass, passes, share

# Positions whose logits are held in fp32 at once: 128 x 201,088 x 4 bytes is 103 MB.
POSITIONS_AT_ONCE = 128
# Batches of another shape move a log-probability in its last bits; a decision must not see them.
DIGITS = 4


@dataclass(frozen=True)
class _Trie:
    """Nodes below an answer: ids[N], parents[N] (-1 is the answer's last token), and for every
    candidate the node (same numbering) at which each of its tokens is predicted."""

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]


def score_prompts(
    model: Any,
    prompts: Sequence[Prompt],
    candidates: Mapping[str, Candidates],
    *,
    pad_id: int,
    rows_per_pass: int,
) -> list[Likelihoods]:
    """The likelihoods of every prompt's candidates, in the order of `prompts`.

    Prompts with the same ids are computed once.  `rows_per_pass` bounds memory and changes no
    decision.
    """
    found = score_share(model, prompts, candidates, pad_id=pad_id, rows_per_pass=rows_per_pass, rank=0, ranks=1)
    return [found[i] for i in range(len(prompts))]


def score_share(
    model: Any,
    prompts: Sequence[Prompt],
    candidates: Mapping[str, Candidates],
    *,
    pad_id: int,
    rows_per_pass: int,
    rank: int,
    ranks: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Likelihoods]:
    """What one of `ranks` processes answers of all `prompts`, by their place.

    Passes are formed from all prompts before they are shared out, so each computes the same
    numbers whoever runs it.
    `on_progress(done, total)` counts different prompts.
    """
    unique = sorted({(p.question_key, p.ids, p.prefix_length) for p in prompts})
    index = {key: i for i, key in enumerate(unique)}
    distinct = [Prompt(ids, prefix_length, question_key) for question_key, ids, prefix_length in unique]
    tries = {key: _trie(c.targets) for key, c in candidates.items()}
    mine = share(_passes(distinct, tries, rows_per_pass), rank, ranks)
    total = sum(len(one.prompts) for one in mine)
    masking = Masking.of(model)
    found: dict[int, Likelihoods] = {}
    prefixes, keys_values = None, []
    with torch.inference_mode():
        for one in mine:
            if one.prefixes != prefixes:
                prefixes, keys_values = one.prefixes, prefix_cache(model, one.prefixes, pad_id)
            branches = _branches(one, distinct, tries)
            logits_KV, where = forward(model, masking, one.prefixes, keys_values, branches, pad_id)
            found.update(_likelihoods(logits_KV, where, branches, distinct, candidates, tries))
            on_progress(len(found), total)
    places = [index[(p.question_key, p.ids, p.prefix_length)] for p in prompts]
    return {i: found[place] for i, place in enumerate(places) if place in found}


def _passes(prompts: Sequence[Prompt], tries: Mapping[str, _Trie], rows_per_pass: int) -> list[Pass]:
    """Prompts by what they share."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, prompt in enumerate(prompts):
        # At least one token is left for the branch: its last one predicts.
        shared = min(prompt.prefix_length, len(prompt.ids) - 1)
        length = len(prompt.ids) - shared + len(tries[prompt.question_key].ids)
        groups.setdefault(prompt.ids[:shared], []).append((i, length))
    return passes(groups, rows_per_pass)


def _branches(one: Pass, prompts: Sequence[Prompt], tries: Mapping[str, _Trie]) -> list[Branch]:
    found = []
    for i, behind in zip(one.prompts, one.behind, strict=True):
        tree, trie = TokenTree(), tries[prompts[i].question_key]
        leaf = tree.extend(-1, prompts[i].ids[len(one.prefixes[behind]) :])
        tree.graft(leaf, trie.ids, trie.parents)
        found.append(Branch(i, behind, tree, leaf))
    return found


def _trie(targets: Sequence[tuple[int, ...]]) -> _Trie:
    nodes: dict[tuple[int, ...], int] = {(): -1}
    parents = []
    for target in targets:
        for length in range(1, len(target)):
            if target[:length] not in nodes:
                parents.append(nodes[target[: length - 1]])
                nodes[target[:length]] = len(nodes) - 1
    reads = tuple(tuple(nodes[target[:length]] for length in range(len(target))) for target in targets)
    return _Trie(tuple(path[-1] for path in list(nodes)[1:]), tuple(parents), reads)


def _likelihoods(
    logits_KV: torch.Tensor,
    where: Sequence[Sequence[int]],
    batch: Sequence[Branch],
    prompts: Sequence[Prompt],
    candidates: Mapping[str, Candidates],
    tries: Mapping[str, _Trie],
) -> dict[int, Likelihoods]:
    """By prompt, the sums over each candidate's tokens."""
    reads: list[int] = []
    tokens: list[int] = []
    for at, branch in zip(where, batch, strict=True):
        for target, nodes in _predictions(prompts[branch.prompt], candidates, tries):
            reads += [at[branch.leaf + 1 + node] for node in nodes]
            tokens += target
    values, likeliest = _read(logits_KV, reads, tokens)
    found, start = {}, 0
    for branch in batch:
        sums, greedy = [], None
        for c, (target, _) in enumerate(_predictions(prompts[branch.prompt], candidates, tries)):
            end = start + len(target)
            sums.append(round(sum(values[start:end]), DIGITS))
            greedy = c if all(likeliest[start:end]) else greedy
            start = end
        found[branch.prompt] = Likelihoods(tuple(sums), greedy)
    return found


def _predictions(
    prompt: Prompt, candidates: Mapping[str, Candidates], tries: Mapping[str, _Trie]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For every candidate its tokens, and the trie node at which each is predicted."""
    return list(zip(candidates[prompt.question_key].targets, tries[prompt.question_key].reads, strict=True))


def _read(logits_KV: torch.Tensor, reads: list[int], tokens: list[int]) -> tuple[list[float], list[bool]]:
    """log p of `tokens[n]` at kept position `reads[n]`, and whether it is the likeliest there."""
    normalizers, tops = [], []
    for chunk in logits_KV.split(POSITIONS_AT_ONCE):
        # logsumexp, but that the greatest is looked for once.
        logits = chunk.float()
        greatest, top = logits.max(-1)
        normalizers.append((logits - greatest[:, None]).exp_().sum(-1).log_() + greatest)
        tops.append(top)
    at = torch.tensor(reads, device=logits_KV.device)
    ids = torch.tensor(tokens, device=logits_KV.device)
    values = logits_KV[at, ids].float() - torch.cat(normalizers)[at]
    return values.tolist(), (torch.cat(tops)[at] == ids).tolist()
