"""How long a training has run in all, over every attempt.

Each attempt keeps a file of its own under `aside/time/`, rewritten every few seconds, so that
SIGKILL at any moment loses no more than that.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gradelora.artifacts import ASIDE, Frozen
from gradelora.child import write_whole

FOLDER = "time"
EVERY_S = 2.0


class Attempt(Frozen):
    """Wall seconds of one attempt, loading included: a rented machine is paid for them, too."""

    seconds: float


class Ledger:
    """The attempts of the training whose folder is `out`."""

    def __init__(self, out: Path) -> None:
        self.folder = out / ASIDE / FOLDER

    def spent_s(self) -> float:
        """Seconds of all attempts up to now."""
        return sum(self._read(path).seconds for path in self.folder.glob("*.json"))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block as one more attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{len(list(self.folder.glob('*.json'))) + 1:04d}.json"
        started, ended = time.monotonic(), threading.Event()

        def write() -> None:
            write_whole(path, Attempt(seconds=round(time.monotonic() - started, 3)).model_dump_json())

        def tick() -> None:
            while not ended.wait(EVERY_S):
                write()

        write()
        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield
        finally:
            ended.set()
            ticking.join()
            write()

    @staticmethod
    def _read(path: Path) -> Attempt:
        try:
            return Attempt.model_validate_json(path.read_text())
        except (OSError, ValueError):
            # A machine that lost its power may leave it empty: at most a few seconds are not counted.
            return Attempt(seconds=0)
