"""A training that is told to stop ends with the step that it is in, sealed.

The launching process leaves a file (train.stop looks for it): a signal to torchrun or deepspeed is
the end of their ranks.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gradelora.errors import GradeloraError

STOP = "stop"
# launch.GRACE_S ends this process later, and Prefect its run later still, after 30 s.
SEAL_S = 20.0


@contextmanager
def cancellable(stop: Path) -> Iterator[None]:
    """On SIGTERM the ranks may still end their step and seal it, for SEAL_S; then the block is left by SystemExit.

    A second SIGTERM leaves it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    parent = os.getppid()

    def leave(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        # Where the parent was killed, the next run may begin any moment, and must find nobody at work.
        if len(asked) > 1 or os.getppid() != parent:
            raise SystemExit(128 + asked[0])
        stop.touch()
        signal.setitimer(signal.ITIMER_REAL, SEAL_S)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    except GradeloraError:
        # Whatever the ranks ended with: they were told to.
        if not asked:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise SystemExit(128 + asked[0])
