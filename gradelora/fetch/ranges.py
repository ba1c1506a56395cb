"""The `http` engine: several connections, each fetching a run of blocks at a time.

Connections are the gain (hosts cap each one), and a killed run loses at most a block of each.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence

from gradelora.errors import HubUnavailable, Transient
from gradelora.fetch.part import Part, Stopped
from gradelora.fetch.source import LinkRefused, RangesIgnored, Source, WrongAnswer
from gradelora.hub import failures

# 8 MiB a request; towards the end less, so that all connections end together.
RUN_BLOCKS = 32
SHORTEST_RUN_BLOCKS = 4
# Parts whose hash follows their bytes at a time: one may be complete while the next arrives.
HASHERS = 2
LONGEST_PAUSE_S = 30.0


class RangeEngine:
    """Fills parts and publishes each as soon as it is whole."""

    def __init__(self, source: Source, connections: int, retries: int, published: Callable[[Part], None]) -> None:
        self._source, self._connections, self._retries, self._published = source, connections, retries, published
        self._parts: list[Part] = []
        self._busy = 0  # connections
        self._error: Exception | None = None
        self._resume_at = 0.0
        self._stop = threading.Event()
        self._changed = threading.Condition()

    @property
    def busy(self) -> int:
        """Connections that fetch something now."""
        return self._busy

    def fill(self, parts: Sequence[Part]) -> None:
        """Fetch what is missing of the open `parts`, in order.

        Raises the first error that trying again did not mend; finished blocks stay on the disk.
        """
        self._parts = list(parts)
        self._unhashed = list(parts)
        # Daemons: a connection that hangs must not hold the process back when it is told to end.
        work = [threading.Thread(target=self._work, daemon=True) for _ in range(self._connections)]
        work += [threading.Thread(target=self._hash, daemon=True) for _ in range(HASHERS)]
        try:
            for thread in work:
                thread.start()
            for thread in work:
                # Short waits: Ctrl-C is not heard in a long one.
                while thread.is_alive() and not self._error:
                    thread.join(0.1)
        finally:
            self._stop.set()
            self._notify()
        if self._error:
            raise self._error

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _hash(self) -> None:
        """Follow the bytes of one part after the other; publish each when it is whole and right."""
        while not self._stop.is_set():
            with self._changed:
                if not self._unhashed:
                    return
                part = self._unhashed.pop(0)
            try:
                while not part.advance():
                    with self._changed:
                        self._changed.wait(0.05)
                    if self._stop.is_set():
                        return
                part.publish()
                self._published(part)
            except Stopped:
                return
            except Exception as error:
                self._give_up(self._source.named(error, part), error)

    def _work(self) -> None:
        """One connection's life: take a run, fetch it, until nothing is left."""
        misses = 0
        while (job := self._next()) is not None:
            part, run = job
            done_before = part.done_bytes
            try:
                self._source.receive(part, run, self._stop.is_set)
                misses = 0
            except Stopped:
                return
            except Exception as error:
                # What arrived before the failure is kept, and shows that the host still gives.
                misses = 1 if part.done_bytes > done_before else misses + 1
                self._failed(error, part, misses)
            finally:
                part.give_back(run)
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _next(self) -> tuple[Part, range] | None:
        """The next run; waits while others may still give some back; None at the end."""
        while not self._stop.is_set():
            if (pause_s := self._resume_at - time.monotonic()) > 0:
                self._stop.wait(min(pause_s, 0.5))
                continue
            with self._changed:
                left = sum(p.untaken_blocks for p in self._parts)
                most = min(RUN_BLOCKS, max(SHORTEST_RUN_BLOCKS, left // (2 * self._connections)))
                for part in self._parts:
                    if (run := part.take(most)) is not None:
                        self._busy += 1
                        return part, run
                if self._busy == 0:
                    return None
                self._changed.wait(0.5)
        return None

    def _failed(self, error: Exception, part: Part, misses: int) -> None:
        """Pause or give up."""
        known = self._source.named(error, part)
        # A fresh link that is refused, too, and a host that knows no Range are no matter of time.
        limit = 1 if isinstance(known, LinkRefused | RangesIgnored) else self._retries
        if not isinstance(known, Transient) or misses > limit:
            self._give_up(known, error)
            return
        asked_s = failures.retry_after_s(error)
        if asked_s is not None:
            # The host asks all of us to wait.
            self._resume_at = max(self._resume_at, time.monotonic() + asked_s)
        elif misses > 1 or not isinstance(known, LinkRefused | WrongAnswer):
            self._stop.wait(min(LONGEST_PAUSE_S, 2.0 ** (misses - 1)) * random.uniform(0.5, 1))

    def _give_up(self, known: Exception, error: Exception) -> None:
        """End all connections with this error."""
        if isinstance(known, LinkRefused | WrongAnswer):
            known = HubUnavailable(str(known))
        if known is not error:
            known.__cause__ = error
        self._error = self._error or known
        self._stop.set()
