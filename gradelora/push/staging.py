"""Where a hand-over lies while it is sent: links below the store, which pin what they link to until they go."""

import contextlib
import fcntl
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = ".push-", ".push.lock"
ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder that is gone at the end, a signal's too; what a killed push has left goes first."""
    with (root / LOCK).open("w") as lock:
        with contextlib.suppress(BlockingIOError):
            # Nobody else pushes from this store, so nobody works in what lies there.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in root.glob(f"{PREFIX}*/"):
                shutil.rmtree(left)
        fcntl.flock(lock, fcntl.LOCK_SH)
        before = {number: signal.signal(number, lambda n, _: sys.exit(128 + n)) for number in ENDING}
        try:
            with tempfile.TemporaryDirectory(dir=root, prefix=PREFIX) as name:
                yield Path(name)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
