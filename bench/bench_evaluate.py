"""Scores for answers, side by side: generate, one row a candidate, shared prefix with a trie of candidates.

    python bench/bench_evaluate.py [--rounds 7] [--answers 12] [--steps 150]

The tiny gpt-oss of the demo with a LoRA adapter, trained here on the sample's other answers; one
thread.  generate is given its best: prompts sorted by length, batched, padded on the left.  The
arms take turns; a figure is items per CPU-second, median of the rounds.  Every arm's decisions
are compared with those of one row a candidate, and with the human scores.  Exits with 1 where the
stage's way scores less than NEEDED times what generate does.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradelora.scoring.candidates import Candidates, Prompt
from gradelora.scoring.grid import coarsest_step, grid

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
NEEDED = 3.0
Decisions = list[float | None]


@dataclass(frozen=True)
class Answer:
    """What is asked, what a human gave, and the ids that would say so."""

    prompt: Prompt
    score: float
    target: tuple[int, ...]


def sample(layout: Any, answers: int) -> tuple[list[Answer], list[Answer], dict[str, Candidates]]:
    """Different answers of the sample: up to `answers` to every question to score, the others to train on."""
    by_question: dict[str, dict[Prompt, float]] = {}
    maxima: dict[str, float] = {}
    for path in sorted((ROOT / "data" / "sample").glob("*.json")):
        for record in json.loads(path.read_text()):
            for item in record["rubric_alignment"]:
                key = item["question"]
                prefix = layout.prefix(item["question"], item.get("rubric"), item["max_score"])
                ids = (*prefix, *layout.answer(item["answer"]), *layout.closing)
                maxima[key] = item["max_score"]
                by_question.setdefault(key, {}).setdefault(Prompt(ids, len(prefix), key), item["score"])
    candidates, held, rest = {}, [], []
    for key, found in by_question.items():
        step = coarsest_step(set(found.values()))
        scores = grid(maxima[key], step, set(found.values()))
        targets = tuple(tuple(layout.candidate(score)) for score in scores)
        candidates[key] = Candidates(max_score=maxima[key], step=step, scores=tuple(scores), targets=targets)
        # Scoring computes equal answers once, which generate could do as well: they are different here.
        all_of_it = [Answer(p, score, targets[scores.index(score)]) for p, score in found.items()]
        held, rest = [*held, *all_of_it[:answers]], [*rest, *all_of_it[answers:]]
    return held, rest, candidates


def trained(model: Any, answers: Sequence[Answer], pad_id: int, steps: int) -> Any:
    """A LoRA adapter on `model`, trained on the targets alone: 24 rows a step, cosine from 6e-3."""
    import torch

    from gradelora.config import LoraSettings
    from gradelora.model.adapter import attach

    torch.manual_seed(0)
    peft = attach(model, LoraSettings(dropout=0)).train()
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=6e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    choose = random.Random(0)
    for _ in range(steps):
        rows = choose.sample(list(answers), 24)
        ids, mask = padded([row.prompt.ids + row.target for row in rows], pad_id, "right")
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            keep[b, len(row.prompt.ids) - 1 : len(row.prompt.ids) + len(row.target) - 1] = True
        logits = peft(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits
        wanted = torch.tensor([token for row in rows for token in row.target])
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return peft.eval()


def batches(rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of rows sorted by length, BATCH at a time."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def padded(rows: Sequence[tuple[int, ...]], pad_id: int, side: str) -> Any:
    """input_ids and attention_mask [B, L]."""
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids, mask


def by_generate(model: Any, prompts: list[Any], candidates: dict[str, Any], layout: Any) -> Decisions:
    """Greedy generation, read back as a score; None where it is none."""
    import torch

    end = layout.target_closing[-1]
    longest = max(len(t) for c in candidates.values() for t in c.targets)
    found: Decisions = [None] * len(prompts)
    for chosen in batches([p.ids for p in prompts]):
        ids, mask = padded([prompts[i].ids for i in chosen], layout.pad_token_id, "left")
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=longest,
                do_sample=False,
                use_cache=True,
                eos_token_id=end,
                pad_token_id=layout.pad_token_id,
            )
        for i, row in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
            target = tuple(row[: row.index(end) + 1]) if end in row else tuple(row)
            known = candidates[prompts[i].question_key]
            if target in known.targets:
                found[i] = known.scores[known.targets.index(target)]
    return found


def by_rows(model: Any, prompts: list[Any], candidates: dict[str, Any], layout: Any) -> Decisions:
    """Every candidate of every answer in a row of its own; logits at the target alone."""
    import torch

    rows = [(i, p.ids, t) for i, p in enumerate(prompts) for t in candidates[p.question_key].targets]
    logs: dict[int, list[tuple[int, float]]] = {}
    for chosen in batches([ids + target for _, ids, target in rows]):
        ids, mask = padded([rows[r][1] + rows[r][2] for r in chosen], layout.pad_token_id, "right")
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for b, r in enumerate(chosen):
            keep[b, len(rows[r][1]) - 1 : len(rows[r][1]) + len(rows[r][2]) - 1] = True
        with torch.inference_mode():
            out = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits.log_softmax(-1)
        at = 0
        for r in chosen:
            target = rows[r][2]
            value = out[range(at, at + len(target)), list(target)].sum().item()
            logs.setdefault(rows[r][0], []).append((r, value))
            at += len(target)
    found: Decisions = []
    for i, prompt in enumerate(prompts):
        values = [value for _, value in sorted(logs[i])]
        found.append(candidates[prompt.question_key].scores[values.index(max(values))])
    return found


def by_tree(model: Any, prompts: list[Any], candidates: dict[str, Any], layout: Any) -> Decisions:
    """The evaluate stage's way."""
    from gradelora.scoring.likelihood import score_prompts
    from gradelora.scoring.opinion import opinion

    scored = score_prompts(model, prompts, candidates, pad_id=layout.pad_token_id, rows_per_pass=4)
    return [opinion(candidates[p.question_key], s).score for p, s in zip(prompts, scored, strict=True)]


ARMS: dict[str, Callable[..., Decisions]] = {
    "generate, sorted and batched": by_generate,
    "one row a candidate": by_rows,
    "shared prefix, candidate trie": by_tree,
}


def compare(rounds: int, answers: int, steps: int) -> float:
    """Print the table; returns how many times as many items a CPU-second the stage's way scores as generate."""
    from sklearn.metrics import cohen_kappa_score

    from gradelora.model.load import load_base
    from gradelora.prompt import load_layout
    from gradelora.sandbox.tiny_gpt_oss import ENCODING, build

    folder = build(ROOT / ".cache" / "bench" / "tiny-gpt-oss")
    layout = load_layout(folder, ENCODING)
    held, rest, candidates = sample(layout, answers)
    base = load_base(folder, weights="bf16", precision="fp32", device="cpu")
    model = trained(base, rest, layout.pad_token_id, steps)
    prompts = [a.prompt for a in held]
    tokens = sum(len(p.ids) for p in prompts) / len(prompts)
    print(
        f"{len(prompts)} answers to {len(candidates)} questions, {tokens:.0f} tokens a prompt, fp32; "
        f"adapter trained {steps} steps on {len(rest)} others"
    )
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    decided: dict[str, Decisions] = {}
    for turn in range(rounds):
        for name in (list(ARMS), list(ARMS)[::-1])[turn % 2]:
            started = time.process_time()
            decided[name] = ARMS[name](model, prompts, candidates, layout)
            seconds[name].append(time.process_time() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    slowest = median["generate, sorted and batched"]
    truth = decided["one row a candidate"]
    print(f"{'':32} {'items/CPU-s':>11} {'ratio':>6} {'same decision':>13} {'no score':>8} {'QWK':>6}")
    for name, value in median.items():
        same = sum(a == b for a, b in zip(decided[name], truth, strict=True))
        none = sum(d is None for d in decided[name])
        pairs = [(round(2 * a.score), round(2 * d)) for a, d in zip(held, decided[name], strict=True) if d is not None]
        qwk = cohen_kappa_score(*zip(*pairs, strict=True), weights="quadratic", labels=list(range(41)))
        rate = f"{len(prompts) / value:>11.1f} {slowest / value:>5.1f}x"
        print(f"{name:32} {rate} {same:>6} of {len(truth)} {none:>8} {qwk:>6.3f}")
    return slowest / median["shared prefix, candidate trie"]


def main() -> int:
    """Print the table; 1 where the stage's way is not NEEDED times as fast as generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answers", type=int, default=12, help="answers a question")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    arguments = parser.parse_args()
    ratio = compare(arguments.rounds, arguments.answers, arguments.steps)
    print(f"{ratio:.1f}x generate; at least {NEEDED:g}x is asked for")
    return 0 if ratio >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
