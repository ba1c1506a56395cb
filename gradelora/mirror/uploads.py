"""What is on its way up, in a thread of its own: a run never waits for it before its end.

The ranks are other processes, so a slow upload takes nothing from them but network.
"""

import collections
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gradelora.errors import MirrorUnreachable
from gradelora.mirror import champions, checkpoints, sealed
from gradelora.mirror.remote import Remote

POLL_S = 1.0
AGAIN_S = 30.0


@dataclass
class Job:
    """Something to send, whole already; `after` is the monotonic time before which it is not tried again."""

    what: str
    send: Callable[[], int]
    after: float = 0.0


@dataclass
class Training:
    """An artifact in the making, whose checkpoints are sent as they are sealed; `sent` is the newest that is up."""

    stage: str
    key: str
    out: Path
    sent: int = -1
    after: float = 0.0

    @property
    def what(self) -> str:
        """Its name in a message."""
        return f"checkpoint of {self.stage}/{self.key[:12]}"

    @property
    def waiting(self) -> int | None:
        """The newest sealed step, where it is not up yet."""
        step = checkpoints.newest_here(self.out)
        return step if step is not None and step > self.sent else None


@dataclass
class Tally:
    """What got up in this process."""

    artifacts: int = 0
    checkpoints: int = 0
    sent_bytes: int = 0
    lost: list[str] = field(default_factory=list)


class Uploads:
    """A queue and the thread that empties it; `say` is told what failed, once for each outage."""

    def __init__(self, remote: Remote, say: Callable[[str], None]) -> None:
        self._remote, self._say = remote, say
        self._changed = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._trainings: dict[Path, Training] = {}
        self._thread: threading.Thread | None = None
        self._current: Job | Training | None = None
        self._ending = self._outage = False
        self.tally = Tally()

    def artifact(self, folder: Path, *, replace: bool = False) -> None:
        """Send a sealed folder where the mirror lacks it."""

        def send() -> int:
            sent = sealed.push(self._remote, folder, replace=replace)
            checkpoints.remove(self._remote, folder.parent.name, folder.name)
            self.tally.artifacts += bool(sent)
            return sent

        self._add(Job(f"{folder.parent.name}/{folder.name[:12]}", send))

    def champion(self, root: Path, name: str) -> None:
        """Send the champion's record, after the artifacts that it names."""

        def send() -> int:
            warning = champions.push(self._remote, root, name)
            if warning:
                self._say(f"mirror: {warning}")
            return 0

        self._add(Job(f"champion {name}", send))

    def watch(self, stage: str, key: str, out: Path, sent: int | None) -> None:
        """Send the newest checkpoint under `out` whenever there is a new one, from `sent` on."""
        with self._changed:
            self._trainings[out] = Training(stage, key, out, -1 if sent is None else sent)
        self._start()

    def unwatch(self, out: Path) -> None:
        """The artifact is there: its checkpoints are of no more use."""
        with self._changed:
            self._trainings.pop(out, None)

    def finish(self, timeout_s: float) -> Tally:
        """Wait until everything is up, each thing tried once more at most; what is not up then is lost."""
        until = time.monotonic() + timeout_s
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            while self._thread and (self._current or self._upcoming()) and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, POLL_S))
            # What is on its way still is in no queue, and will not arrive: the process is about to end.
            unsent = [self._current] if self._current else []
            unsent += [*self._jobs, *(t for t in self._trainings.values() if t.waiting is not None)]
            self.tally.lost += dict.fromkeys(each.what for each in unsent)
            self._jobs.clear()
            self._trainings.clear()
            tally, self.tally, self._ending, self._outage = self.tally, Tally(), False, False
        return tally

    def _add(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
        self._start()

    def _start(self) -> None:
        with self._changed:
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: a mirror that hangs must not keep the run's process from ending.
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                upcoming = self._upcoming()
                self._current = upcoming
                self._changed.notify_all()
                if upcoming is None:
                    self._changed.wait(POLL_S)
                elif isinstance(upcoming, Job):
                    self._jobs.remove(upcoming)
            if upcoming is not None:
                self._do(upcoming)

    def _upcoming(self) -> Job | Training | None:
        """What can be sent now: artifacts first, which are small and end a stage."""
        now = time.monotonic()
        ready: list[Job | Training] = [job for job in self._jobs if self._ending or job.after <= now]
        ready += [t for t in self._trainings.values() if (self._ending or t.after <= now) and t.waiting is not None]
        return ready[0] if ready else None

    def _do(self, upcoming: Job | Training) -> None:
        try:
            self.tally.sent_bytes += upcoming.send() if isinstance(upcoming, Job) else self._checkpoint(upcoming)
            self._outage = False
        except MirrorUnreachable as error:
            if not self._outage:
                self._say(f"mirror: {error}; the run goes on, and tries again every {AGAIN_S:.0f} s")
            self._outage = True
            self._again(upcoming)
        except Exception as error:
            # Deleted or damaged meanwhile, or what nobody foresaw: it costs this one, never the thread that
            # sends all others.  A newer checkpoint, or the next run's check, takes its place.
            self._say(f"mirror: {upcoming.what} was not sent ({type(error).__name__}: {error})")
            if isinstance(upcoming, Job):
                self.tally.lost.append(upcoming.what)

    def _checkpoint(self, training: Training) -> int:
        step = training.waiting
        if step is None:
            return 0
        before, training.sent = training.sent, step
        try:
            sent = checkpoints.push(self._remote, training.stage, training.key, training.out, step)
        except MirrorUnreachable:
            training.sent = before
            raise
        self.tally.checkpoints += 1
        return sent

    def _again(self, upcoming: Job | Training) -> None:
        with self._changed:
            upcoming.after = time.monotonic() + AGAIN_S
            if self._ending:
                self._current = None
                self.tally.lost.append(upcoming.what)
                self._trainings = {out: t for out, t in self._trainings.items() if t is not upcoming}
            elif isinstance(upcoming, Job):
                self._jobs.append(upcoming)
