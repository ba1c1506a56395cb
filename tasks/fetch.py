"""Bring the base model's files into the Hub cache, every byte verified."""

import re
from typing import Literal, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from gradelora.artifacts import BaseModel, ModelSnapshot
from gradelora.config import FetchConfig, RunConfig
from gradelora.errors import ChecksumMismatch, HubUnavailable
from gradelora.fetch import fetch as stage
from gradelora.store import Obtained
from tasks.stage import obtain, only, stage_task

# `fetch: 31.2 GB of 65.3 GB (48 %), ...` and, at the end, `fetch: 65.3 GB in 7 min, ...`
SHARE = re.compile(r"fetch: .* of .* \((\d+) %\)")
DONE = re.compile(r"fetch: \S+ \S+ in .*/s$")


@stage_task(
    task_run_name="fetch {part}",
    retries=8,
    retry_delay_seconds=[5, 15, 30, 60, 120, 300, 300, 300],
    retry_condition_fn=only(HubUnavailable, ChecksumMismatch),
)
def fetch(run: RunConfig, base: BaseModel, part: Literal["tokenizer", "everything"]) -> Obtained[ModelSnapshot]:
    """The tokenizer's files alone, or all."""
    return obtain(run, stage, FetchConfig(part=part), base, on_line=Watched(f"fetch-{part}"))


class Watched:
    """The download's lines in the run's log, and how far it is as a progress artifact."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._artifact: UUID | None = None
        self._shown = True

    def __call__(self, line: str) -> None:
        """One line that the download printed."""
        get_run_logger().info(line)
        share = SHARE.match(line)
        if self._shown and (share or DONE.match(line)):
            try:
                self._show(float(share.group(1)) if share else 100.0, line.removeprefix("fetch: "))
            except Exception as error:
                # A picture: a server that cannot draw it must not end a download of hours.
                get_run_logger().warning("no more progress artifacts: %s", error)
                self._shown = False

    def _show(self, percent: float, description: str) -> None:
        if self._artifact is None:
            created = create_progress_artifact(percent, key=self._key, description=description)
            self._artifact = cast("UUID", created)
        else:
            update_progress_artifact(self._artifact, percent, description=description)
