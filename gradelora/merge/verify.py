"""The merged model beside base + adapter, on items that evaluate scored: decisions and log-probabilities.

predictions.jsonl already holds what base and adapter said, so one model is loaded, not two.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from gradelora.artifacts import ASIDE, Agreed, EncodedDataset, EvalReport, Frozen, Split
from gradelora.config import MergeStageConfig, Runtime
from gradelora.errors import Damaged, MergeDiffers
from gradelora.hardware import available_host_bytes
from gradelora.model.load import load_base
from gradelora.scoring.candidates import Likelihoods, read_candidates
from gradelora.scoring.held_out import HeldOut, read_held_out
from gradelora.scoring.likelihood import score_prompts

PREDICTIONS = "predictions.jsonl"
DIGITS = 4
# Weights that are rounded once more to bf16, and sums in another order, move a log-probability
# however little the adapter changed; below this the share of its effect is not judged.
NOISE_NATS = 0.05
# The rest is for activations, keys and values.
SHARE_OF_FREE = 0.85


class Told(Frozen):
    """What evaluate wrote of one item, as far as it is compared."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    item_id: str
    split: Split
    base_log_probabilities: tuple[float, ...]
    adapter_log_probabilities: tuple[float, ...]


def verify(config: MergeStageConfig, report: EvalReport, data: EncodedDataset, out: Path, runtime: Runtime) -> Agreed:
    """Load `out`, score `config.verify_items` items, compare.

    Raises KeyMismatch for a key too few or too many, MergeDiffers where the comparison fails.
    """
    told = chosen(report.path / PREDICTIONS, config.verify_items)
    items = {item.item_id: item for item in read_held_out(data, sorted({one.split for one in told}))}
    lost = [one.item_id for one in told if one.item_id not in items]
    if lost:
        raise Damaged(f"{report.path / PREDICTIONS}: {lost[0]} is no item of the encoded data; evaluate again")
    print(f"merge: the merged model scores {len(told)} evaluated items", flush=True)
    found = _scored([items[one.item_id] for one in told], config, data, out, runtime)
    agreed = compare(told, found, config.max_shift)
    print(
        f"merge: {agreed.changed_scores} of {agreed.items} scores changed, {agreed.ties} of them near-ties, "
        f"log-probabilities by "
        f"{agreed.mean_difference:.4f} nats on average, by {agreed.adapter_effect:.4f} by the adapter",
        flush=True,
    )
    judge(agreed, config)
    return agreed


def chosen(predictions: Path, count: int) -> list[Told]:
    """`count` evaluated items, the same for every model: those whose ids hash lowest."""
    with predictions.open(encoding="utf-8") as file:
        told = [Told.model_validate(json.loads(line)) for line in file]
    told.sort(key=lambda one: hashlib.sha256(one.item_id.encode()).digest())
    return told[:count]


def _scored(
    items: Sequence[HeldOut], config: MergeStageConfig, data: EncodedDataset, out: Path, runtime: Runtime
) -> list[Likelihoods]:
    """Of each item's scores, by the model in `out`."""
    model = load_base(
        out,
        weights=config.weights,
        precision=config.precision,
        device=config.device,
        max_memory=room(config),
        config=out / ASIDE / "config.json",
    )
    candidates = read_candidates(data.path)
    return score_prompts(
        model,
        [item.prompt for item in items],
        candidates,
        pad_id=data.pad_token_id,
        rows_per_pass=runtime.evaluate_rows,
    )


def room(config: MergeStageConfig) -> dict[int | str, str] | None:
    """Memory by device where weights in bf16 may not fit into one GPU; None: all on one device."""
    import torch

    if config.device == "cpu" or config.weights == "packed":
        return None
    free = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    whole = free | {"cpu": available_host_bytes()}
    return {place: f"{int(SHARE_OF_FREE * size / 1e6)}MB" for place, size in whole.items()}


def compare(told: Sequence[Told], found: Sequence[Likelihoods], max_shift: float) -> Agreed:
    """Scores, and the log-probability of the score that base + adapter gives to each item.

    `found` is what the merged model says of the same items.
    """
    differences, effects, margins = [], [], []
    for one, likelihoods in zip(told, found, strict=True):
        logs, merged = one.adapter_log_probabilities, likelihoods.log_probabilities
        # Of equally likely scores the lowest, as in gradelora.scoring.opinion.
        best, place = logs.index(max(logs)), merged.index(max(merged))
        differences.append(abs(merged[best] - logs[best]))
        effects.append(abs(one.base_log_probabilities[best] - logs[best]))
        if place != best:
            margins.append(logs[best] - logs[place])
    mean, effect = sum(differences) / len(told), sum(effects) / len(told)
    return Agreed(
        items=len(told),
        changed_scores=len(margins),
        ties=sum(margin <= max(NOISE_NATS, max_shift * effect) for margin in margins),
        mean_difference=round(mean, DIGITS),
        largest_difference=round(max(differences), DIGITS),
        adapter_effect=round(effect, DIGITS),
        shift=round(mean / effect, DIGITS) if effect else 0.0,
    )


def judge(agreed: Agreed, config: MergeStageConfig) -> None:
    """Raise MergeDiffers where scores or log-probabilities lie outside of what `config` allows."""
    changed = agreed.changed_scores - agreed.ties
    faults = []
    if changed > config.max_changed_scores * agreed.items:
        faults.append(
            f"{changed} of {agreed.items} items get another score, {agreed.ties} near-ties not counted, "
            f"{config.max_changed_scores:.0%} allowed (merge.max_changed_scores)"
        )
    if agreed.mean_difference > NOISE_NATS and agreed.shift > config.max_shift:
        faults.append(
            f"log-probabilities differ by {agreed.mean_difference:.4f} nats on average, {agreed.shift:.0%} of the "
            f"{agreed.adapter_effect:.4f} that the adapter changed, {config.max_shift:.0%} allowed (merge.max_shift)"
        )
    if faults:
        raise MergeDiffers(
            "the merged model does not score as base and adapter do: " + "; ".join(faults) + "; serve the adapter "
            "beside the base, set merge.dtype=bf16 where experts were rounded to MXFP4, or allow more"
        )
