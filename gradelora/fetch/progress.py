"""What a person wants to know of a long download: how much, how fast, how long still."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gradelora.artifacts import RemoteFile
from gradelora.hub import RepoCache

EVERY_S = 5.0


def spell_bytes(size: float) -> str:
    """Bytes in decimal units, as the Hub counts: 65.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def spell_seconds(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


class Progress:
    """Prints a line every few seconds between `with` and its end, from what lies on the disk.

    `in_parts` says how many bytes lie in parts that an engine of ours is filling, `connections` how
    many it has open, 0 where that is unknown.
    """

    def __init__(
        self,
        cache: RepoCache,
        commit: str,
        wanted: Sequence[RemoteFile],
        in_parts: Callable[[], int],
        connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self._cache, self._commit, self._wanted, self._in_parts, self._connections = (
            cache,
            commit,
            wanted,
            in_parts,
            connections,
        )
        self._total = sum(f.size for f in wanted)
        self._orphans = {o.path for o in cache.orphans()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._started, self._first = time.monotonic(), self.done_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        seconds = time.monotonic() - self._started
        if error is None and (got := self.done_bytes() - self._first) > 0:
            rate = spell_bytes(got / max(seconds, 1e-3))
            print(f"fetch: {spell_bytes(got)} in {spell_seconds(seconds)}, {rate}/s", flush=True)

    def done_bytes(self) -> int:
        """Bytes on the disk: whole blobs and the parts of this attempt."""
        done = sum(f.size for f in self._wanted if self._cache.holds(self._commit, f))
        parts = (p for p in self._cache.blobs.glob("*.incomplete") if p not in self._orphans)
        return min(self._total, done + self._in_parts() + sum(_allocated(p) for p in parts))

    def _run(self) -> None:
        before, at = self._first, self._started
        while not self._stop.wait(EVERY_S):
            done, now = self.done_bytes(), time.monotonic()
            rate = (done - before) / (now - at)
            left = f"{spell_seconds((self._total - done) / rate)} left" if rate > 0 else "nothing arrives"
            open_now = f", {count} connections" if (count := self._connections()) else ""
            share = 100 * done / max(1, self._total)
            print(
                f"fetch: {spell_bytes(done)} of {spell_bytes(self._total)} ({share:.0f} %),"
                f" {spell_bytes(rate)}/s, {left}{open_now}",
                flush=True,
            )
            before, at = done, now


def _allocated(path: Path) -> int:
    """Bytes written to a file that may have holes; 0 once it is gone."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0
    return min(stat.st_size, stat.st_blocks * 512)
