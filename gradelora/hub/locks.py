"""Whether a living process holds a file's lock."""

import fcntl
import os
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Whether another open file holds the lock; the kernel frees those of the dead."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No locks on this file system: nothing can be known.
        return False
    finally:
        os.close(fd)
    return False
