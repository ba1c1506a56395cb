"""Bring the base model's files into the Hub cache, every byte verified."""

from typing import Literal

from gradelora.artifacts import BaseModel, ModelSnapshot
from gradelora.config import FetchConfig, RunConfig
from gradelora.errors import ChecksumMismatch, HubUnavailable
from gradelora.fetch import fetch as stage
from gradelora.store import Obtained
from tasks.shown import Progress
from tasks.stage import obtain, only, stage_task


@stage_task(
    task_run_name="fetch {part}",
    retries=8,
    retry_delay_seconds=[5, 15, 30, 60, 120, 300, 300, 300],
    retry_condition_fn=only(HubUnavailable, ChecksumMismatch),
)
def fetch(run: RunConfig, base: BaseModel, part: Literal["tokenizer", "everything"]) -> Obtained[ModelSnapshot]:
    """The tokenizer's files alone, or all."""
    progress = Progress(f"{run.name}-fetch-{part}")
    return obtain(run, stage, FetchConfig(part=part), base, on_line=progress, show=lambda _: progress.done())
