"""Held-out items of an EncodedDataset, judged by base and adapter in one load."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradelora.artifacts import EncodedDataset, Frozen
from gradelora.evaluate.predictions import Prediction, named
from gradelora.evaluate.sections import Learned, learn
from gradelora.scoring.candidates import Candidates, Likelihoods, read_candidates
from gradelora.scoring.held_out import HeldOut
from gradelora.scoring.opinion import opinion

PROGRESS_EVERY_S = 5.0


class Judged(Frozen):
    """What base and adapter say about the item at one place of the list."""

    place: int
    base: Likelihoods
    adapter: Likelihoods


def read_learned(data: EncodedDataset) -> dict[str, Learned]:
    """What the train split says by question, for the baselines that need no model."""
    import datasets

    if not data.splits.train:
        return {}
    columns = ["question_key", "prefix_length", "prompt_length", "score"]
    by_question: dict[str, tuple[list[int], list[float]]] = {}
    for row in datasets.load_from_disk(str(data.path / "train")).select_columns(columns):
        lengths, scores = by_question.setdefault(row["question_key"], ([], []))
        lengths.append(row["prompt_length"] - row["prefix_length"])
        scores.append(row["score"])
    return {key: learn(lengths, scores) for key, (lengths, scores) in by_question.items()}


def ask_both(
    model: Any,
    items: Sequence[HeldOut],
    data: EncodedDataset,
    *,
    rows_per_pass: int,
    rank: int,
    ranks: int,
    say: Callable[[str], None],
) -> list[Judged]:
    """One rank's share of `items`, by their place; `model` is a PeftModel, its base is asked with the adapter off."""
    # The process that only merges the ranks' answers need not import torch.
    from gradelora.scoring.likelihood import score_share

    candidates = read_candidates(data.path)
    prompts = [item.prompt for item in items]

    def ask(name: str) -> dict[int, Likelihoods]:
        return score_share(
            model,
            prompts,
            candidates,
            pad_id=data.pad_token_id,
            rows_per_pass=rows_per_pass,
            rank=rank,
            ranks=ranks,
            on_progress=Progress(name, say),
        )

    with model.disable_adapter():
        base = ask("base")
    adapted = ask("adapter")
    return [Judged(place=i, base=base[i], adapter=adapted[i]) for i in sorted(base)]


def predictions_of(
    items: Sequence[HeldOut], judged: Sequence[Judged], candidates: Mapping[str, Candidates]
) -> list[Prediction]:
    """All ranks' answers together, in the order of `items`."""
    by_place = {one.place: one for one in judged}
    numbers = {name: i for i, name in enumerate(dict.fromkeys(item.student_id for item in items if item.student_id))}
    return [
        _prediction(item, numbers.get(item.student_id or ""), candidates[item.question_key], by_place[i])
        for i, item in enumerate(items)
    ]


def _prediction(item: HeldOut, student: int | None, candidates: Candidates, judged: Judged) -> Prediction:
    return Prediction(
        item_id=item.item_id,
        record_id=item.record_id,
        question_key=item.question_key,
        split=item.split,
        student=student,
        group=item.group,
        score=item.score,
        max_score=item.max_score,
        rater2_score=item.rater2_score,
        step=candidates.step,
        scores=candidates.scores,
        **named("base", opinion(candidates, judged.base)),
        **named("adapter", opinion(candidates, judged.adapter)),
    )


class Progress:
    """A line every few seconds and at the end."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.started = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """After a forward pass."""
        now = time.monotonic()
        if done == total or now - self.said > PROGRESS_EVERY_S:
            self.said = now
            rate = done / max(now - self.started, 1e-9)
            self.say(f"{self.name}: {done} of {total} different answers, {rate:.1f} a second")
