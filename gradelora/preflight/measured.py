"""What a sealed training tells of itself: tokens, steps, seconds, memory."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradelora.artifacts import ASIDE, Frozen

PROGRESS = "progress.jsonl"


class Trained(Frozen):
    """One training as its progress lines tell it.

    `tokens` and `steps` are those of the whole run, as far as their lines are there; the last
    attempt alone, which a receipt's seconds belong to, did `last_tokens` in `last_seconds`.
    `peak_bytes` is the most that rank 0 ever held: of its GPU, or of the host on a CPU.
    """

    tokens: int
    steps: int
    peak_bytes: int
    last_tokens: int
    last_seconds: float


def trained(folder: Path) -> Trained | None:
    """Of an Adapter's folder; None where no progress lies beside it, or not what is looked for."""
    try:
        attempts = list(_attempts(progress_lines(folder)))
        # A step that was lost with an attempt and done again counts once.
        steps = {line["step"]: line for attempt in attempts for line in attempt if "loss" in line}
        last = attempts[-1]
        first = next(line for line in last if "loss" in line)
        return Trained(
            tokens=sum(line["tokens"] for line in steps.values()),
            steps=len(steps),
            peak_bytes=max(line["peak_memory_bytes"] for line in steps.values()),
            last_tokens=sum(line["tokens"] for line in last if "loss" in line),
            # A line is written at the end of its step.
            last_seconds=last[-1]["seconds"] - first["seconds"] + first["tokens"] / first["tokens_per_s"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration, ZeroDivisionError):
        return None


def progress_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of an Adapter's folder, in order.  Raises OSError, ValueError."""
    text = (folder / ASIDE / PROGRESS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _attempts(lines: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """The lines by attempt: each begins its seconds anew."""
    attempt: list[dict[str, Any]] = []
    for line in lines:
        if attempt and line["seconds"] < attempt[-1]["seconds"]:
            yield attempt
            attempt = []
        attempt.append(line)
    if attempt:
        yield attempt
