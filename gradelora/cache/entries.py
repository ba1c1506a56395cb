"""One thing that takes up space: what it is called, how large it is, who needs it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gradelora.artifacts import Frozen
from gradelora.errors import BadConfig


class Entry(Frozen):
    """Something that can be removed by `name`.

    `needed_by` says in words what would miss it; `locked` that removing it now would break a
    champion or work in progress.  `ours` is false for what another program brought into the
    Hub cache: only a person can say whether that is needed.  `last_used` is UTC, from the file
    times that the file system keeps.
    """

    name: str
    kind: Literal["artifact", "unfinished", "model", "parts", "orphans"]
    path: Path
    size_bytes: int
    last_used: str
    needed_by: tuple[str, ...] = ()
    locked: bool = False
    ours: bool = True

    @property
    def unneeded(self) -> bool:
        """Whether nothing that we know of would miss it."""
        return self.ours and not self.needed_by and not self.locked


def size_under(folder: Path) -> int:
    """Bytes that a folder takes up on the disk; symbolic links count for themselves, holes not at all.

    A file of several names, as the shards of two merges of the same weights, counts a part in each.
    """
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                stat = (Path(where) / name).lstat()
                total += stat.st_blocks * 512 // stat.st_nlink
    return total


def spell_time(seconds: float) -> str:
    """Seconds since 1970 as UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while something is removed.  Raises BadConfig where work holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadConfig(f"{what}: a run is working on it; wait for its end or cancel it") from error
        yield
