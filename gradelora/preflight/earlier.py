"""Seconds of a stage as an earlier run on this kind of machine took them, scaled by the amount of work.

Receipts tell them, so the second plan is better than the first.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gradelora.hardware import machine_kind
from gradelora.preflight.estimate import Job
from gradelora.preflight.measured import trained
from gradelora.why import Sealed, sorted_by_age

# What decides how fast a stage works, of its settings.
PACE = {
    "train": (
        "weights",
        "parallel",
        "processes",
        "device",
        "precision",
        "gradient_checkpointing",
        "expert_chunk",
        "micro_batch_rows",
        "answers_per_row",
        "tokens_per_row",
    ),
    "evaluate": ("weights", "device", "precision"),
    "merge": ("dtype", "verify_items"),
}


class Amounts(NamedTuple):
    """Work then and now in one unit, and the seconds that do not grow with it."""

    then: float
    now: float
    fixed_s: float = 0.0


def measured(job: Job, label: str) -> tuple[float, str] | None:
    """(seconds, `stage/key` that told them) of the newest run that compares; None where none does."""
    stage, _, part = label.partition(" ")
    for sealed in reversed(sorted_by_age(job.run.store.root, stage, part)):
        receipt = sealed.receipt
        if receipt.machine != machine_kind() or not _same_pace(job, stage, receipt.config):
            continue
        amounts = _amounts(job, stage, sealed)
        if amounts is None or not amounts.then:
            continue
        growing = max(0.0, receipt.seconds - amounts.fixed_s)
        return amounts.fixed_s + growing * amounts.now / amounts.then, f"{stage}/{receipt.key[:12]}"
    return None


def _same_pace(job: Job, stage: str, config: dict[str, Any]) -> bool:
    if stage not in PACE:
        return True
    now = getattr(job.run, stage).model_dump(mode="json")
    return all(now[name] == config.get(name) for name in PACE[stage])


def _amounts(job: Job, stage: str, sealed: Sealed) -> Amounts | None:
    """None where then and now do not compare."""
    artifact, work = sealed.receipt.artifact, job.work
    size = sum(f["size"] for f in artifact["files"])
    if stage == "fetch":
        same = artifact.get("repo_id") == job.base.repo_id
        return Amounts(size, min(size, job.fetch_bytes)) if same else None
    if stage == "validate" and work.data_bytes is not None:
        return Amounts(_read_bytes(sealed.folder), work.data_bytes)
    if stage == "encode" and work.items is not None:
        then = artifact["splits"]["train"] + artifact["splits"]["unseen_answers"]
        return Amounts(then, work.items + (work.held_out_items or 0))
    if stage in ("train", "evaluate", "merge") and job.base.repo_id == _model_of(job, sealed):
        return _heavy_amounts(job, stage, sealed)
    return None


def _heavy_amounts(job: Job, stage: str, sealed: Sealed) -> Amounts | None:
    if stage == "merge":
        return Amounts(_written_bytes(sealed), job.size.merged_bytes(job.run.merge.dtype))
    if stage == "evaluate":
        now = job.work.held_out_items
        return Amounts(sealed.receipt.artifact["items"], now) if now else None
    found = trained(sealed.folder)
    if found is None or job.work.train_tokens is None:
        return None
    # Loading and saving, before and after all steps.
    return Amounts(found.last_tokens, job.work.train_tokens, max(0.0, sealed.receipt.seconds - found.last_seconds))


def _written_bytes(sealed: Sealed) -> float:
    files = sealed.receipt.artifact["files"]
    return float(sum(file["size"] for file in files if file["name"].endswith(".safetensors")))


def _model_of(job: Job, sealed: Sealed) -> str | None:
    """The model that the stage worked on: its own word, else that of the snapshot it was given."""
    own: str | None = sealed.receipt.artifact.get("repo_id")
    if own is not None:
        return own
    snapshot = sealed.receipt.inputs.get("snapshot")
    fetched = sorted_by_age(job.run.store.root, "fetch", "everything")
    return next((f.receipt.artifact.get("repo_id") for f in fetched if f.receipt.digest == snapshot), None)


def _read_bytes(folder: Path) -> float:
    try:
        findings: dict[str, Any] = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        return float(sum(source["size"] for source in findings["sources"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
