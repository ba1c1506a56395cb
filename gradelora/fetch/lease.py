"""One downloader a repository and cache: the others wait for its result.

A lease only saves bandwidth.  Where flock does nothing, two downloaders write the same bytes to
the same places of the same parts, and the first to finish a file publishes it.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from gradelora.hub import RepoCache

POLL_S = 0.3


@contextlib.contextmanager
def lease(cache: RepoCache) -> Iterator[None]:
    """Hold the repository's lease; the kernel frees it when its holder dies."""
    try:
        cache.notes.mkdir(parents=True, exist_ok=True)
        fd = os.open(cache.lease, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        # A cache that cannot be written has no downloader either.
        yield
        return
    try:
        waiting = False
        while not _locked(fd):
            if not waiting:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                print(f"fetch: process {holder or '?'} is fetching {cache.repo_id} already; waiting for it", flush=True)
                waiting = True
            # Polled, so that a waiting run can be cancelled.
            time.sleep(POLL_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # No locks on this file system: see above.
        return True
    return True
