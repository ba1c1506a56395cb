"""What a stage says while it works, as one line with a bar on a terminal."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gradelora.store import Obtained

# "step 12/150: ...", "30 of 128 answers", "sealed model-00003-of-00015.safetensors", "fetch: 41.0 %"
DONE_OF_TOTAL = re.compile(r"(\d+)(?:/| of |-of-)(\d+)")
PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share_done(line: str) -> float | None:
    """How far the stage is, 0 to 1, as far as the line tells."""
    if found := PERCENT.search(line):
        return min(1.0, float(found[1]) / 100)
    if (found := DONE_OF_TOTAL.search(line)) and int(found[2]):
        return min(1.0, int(found[1]) / int(found[2]))
    return None


class Teller:
    """Told of lines and artifacts, shows them on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0) if progress else None

    def line(self, line: str) -> None:
        """One line of the stage at work."""
        if self._progress is None or self._task is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._progress.update(self._task, description=line[:100], completed=share_done(line))

    def obtained(self, obtained: Obtained[Any]) -> None:
        """One stage is done."""
        state = "cached" if obtained.cached else "run"
        text = f"{obtained.label:18} {state:8} {obtained.seconds:8.1f} s"
        if self._progress is None or self._task is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text)
            self._progress.reset(self._task, description="")


@contextmanager
def telling() -> Iterator[Teller]:
    """A teller that cleans up its bar, also after an error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Teller(None)
        return
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Teller(progress)
