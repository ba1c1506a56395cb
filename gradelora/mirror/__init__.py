"""A copy of what a run has done, at an fsspec URL (`store.mirror`): a rented machine may disappear.

Sealed artifacts other than the base snapshot, sealed training checkpoints and the champion
pointers go up in the background and come back on a miss, verified as any hit is.  Receipts and
manifests go up last, so nothing half is ever believed.  A mirror out of reach is a warning.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gradelora.champion import Champions
from gradelora.config import StoreConfig
from gradelora.errors import Damaged, MirrorUnreachable
from gradelora.mirror import champions, checkpoints, sealed
from gradelora.mirror.remote import Remote
from gradelora.mirror.uploads import Tally, Uploads
from gradelora.receipt import RECEIPT

# After an outage the mirror is not asked for so long: each question to a dead one may take half a minute.
PAUSE_S = 120.0
# Where a question is worth waiting for its answer, it is put again after so long.
AGAIN_S = 10.0
# A run that failed is looked at soon; what it has sealed should be up, but not at any price.
FAILED_WAIT_S = 60.0
Say = Callable[[str], None]
T = TypeVar("T")
_opened: dict[str, "Mirror"] = {}
_opening = threading.Lock()


class Mirror:
    """One process's way to one mirror (see gradelora.store.Mirror)."""

    def __init__(self, url: str) -> None:
        """Raises MissingTool where the backend's package is not installed."""
        self.remote, self.url = Remote(url), url
        self.say: Say = lambda text: None
        self._uploads = Uploads(self.remote, lambda text: self.say(text))
        self._damaged: set[tuple[str, str]] = set()
        self._asked_again = 0.0

    def pull(self, stage: str, key: str, into: Path, patience_s: float) -> bytes | None:
        """Bring an artifact's verified files; its receipt, or None where the mirror cannot give it."""

        def bring() -> bytes | None:
            try:
                return sealed.pull(self.remote, stage, key, into)
            except Damaged as damage:
                self._damaged.add((stage, key))
                self.say(f"mirror: {damage}; the stage runs here and its artifact replaces that one")
            return None

        return self._forgiven(bring, None, patience_s)

    def receipt(self, stage: str, key: str) -> bytes | None:
        """What the mirror says of an artifact, without bringing it; None where it has none or is out of reach."""
        return self._forgiven(lambda: self.remote.read(f"{sealed.prefix_of(stage, key)}/{RECEIPT}"), None)

    def offer(self, folder: Path) -> None:
        """Send a sealed folder of the store, in the background, where the mirror lacks it."""
        self._uploads.artifact(folder, replace=(folder.parent.name, folder.name) in self._damaged)

    @contextlib.contextmanager
    def working(self, stage: str, key: str, out: Path, patience_s: float) -> Iterator[None]:
        """While an artifact is built: begin from the newest mirrored checkpoint, send each new one."""
        nothing: tuple[int | None, list[str]] = (None, [])
        step, damaged = self._forgiven(
            lambda: checkpoints.pull_newest(self.remote, stage, key, out),
            nothing,
            patience_s,
            instead=f"{stage} BEGINS WITHOUT the checkpoint that it may hold; cancel the run where that is dear",
        )
        for what in damaged:
            self.say(f"mirror: {what}; falling back to the checkpoint before it")
        if step is not None:
            self.say(f"mirror: {stage} goes on from the checkpoint of step {step}, brought from {self.url}")
        self._uploads.watch(stage, key, out, step)
        yield
        # Only where the stage has ended well: else its last checkpoint is what the next machine needs.
        self._uploads.unwatch(out)

    def bring_champion(self, root: Path, name: str) -> None:
        """Take over the mirror's champion where this store is behind it, with the artifacts it needs."""
        from gradelora.store import Store

        nothing: tuple[Champions, str | None] = (Champions(), None)
        held, warning = self._forgiven(lambda: champions.pull(self.remote, root, name), nothing)
        if warning:
            self.say(f"mirror: {warning}")
        store = Store(root, self)
        for stage, key in champions.needed(held):
            store.bring(stage, key)

    def send_champion(self, root: Path, name: str) -> None:
        """Send the champion's record in the background, after the artifacts that it names."""
        self._uploads.champion(root, name)

    def finish(self, timeout_s: float) -> Tally:
        """Wait for the uploads, no longer than `timeout_s`; what got up and what did not."""
        return self._uploads.finish(timeout_s)

    def _forgiven(
        self,
        action: Callable[[], T],
        otherwise: T,
        patience_s: float = 0.0,
        instead: str = "the run goes on without it",
    ) -> T:
        """What `action` gives; a run that can do its work goes on without the mirror.

        With patience it is asked whatever was the matter a moment ago, and from its first failure on again
        until that is used up.
        """
        until = 0.0
        if not patience_s and time.monotonic() < self._asked_again:
            return otherwise
        while True:
            try:
                return action()
            except MirrorUnreachable as error:
                first = not until
                until = until or time.monotonic() + patience_s
                left = until - time.monotonic()
                if left <= 0:
                    self._asked_again = time.monotonic() + PAUSE_S
                    self.say(f"mirror: {error}; {instead}")
                    return otherwise
                if first:
                    self.say(f"mirror: {error}; it is asked again for {left:.0f} s, for hours of work may hang on it")
                time.sleep(min(AGAIN_S, left))
            except Damaged as error:
                self.say(f"mirror: {error}; {instead}")
                return otherwise


def mirror_of(store: StoreConfig, say: Say | None = None) -> Mirror | None:
    """The mirror of a store, one in a process; None where none is set.  Raises MissingTool."""
    if store.mirror is None:
        return None
    with _opening:
        mirror = _opened.get(store.mirror) or _opened.setdefault(store.mirror, Mirror(store.mirror))
    if say is not None:
        mirror.say = say
    return mirror


@contextlib.contextmanager
def champion_shared(store: StoreConfig, name: str) -> Iterator[None]:
    """While a champion is judged or changed: take over the mirror's first, send this store's afterwards."""
    mirror = mirror_of(store)
    if mirror is not None:
        mirror.bring_champion(store.root.absolute(), name)
    yield
    if mirror is not None:
        mirror.send_champion(store.root.absolute(), name)


@contextlib.contextmanager
def uploads_finished(store: StoreConfig, say: Say) -> Iterator[None]:
    """At a run's end: wait for its uploads, bounded by `store.mirror_wait_s`, and say what did not get up.

    A failed run waits a minute at most, a cancelled one not at all.
    """
    mirror = mirror_of(store, say)
    wait_s = store.mirror_wait_s
    try:
        yield
    except Exception:
        wait_s = min(wait_s, FAILED_WAIT_S)
        raise
    except BaseException:
        wait_s = 0.0
        raise
    finally:
        if mirror is not None:
            mirror.say = say
            say(summary(mirror, mirror.finish(wait_s)))


def summary(mirror: Mirror, tally: Tally) -> str:
    """What the uploads of a run came to, in one sentence."""
    done = (
        f"mirror: {tally.artifacts} artifacts and {tally.checkpoints} checkpoints, "
        f"{tally.sent_bytes / 1e6:.1f} MB, sent to {mirror.url}"
    )
    if not tally.lost:
        return done
    return f"{done}; not up: {', '.join(tally.lost)}; run `gradelora mirror push` to send them"


__all__ = ["Mirror", "champion_shared", "mirror_of", "summary", "uploads_finished"]
