"""Run a child in its own process group: log, deadline, cancellation, exit code.

Nothing that is started here outlives the call: an exception in the parent (a cancelled flow,
Ctrl-C, a deadline) ends the whole group, first by SIGTERM and after a grace period by SIGKILL.
"""

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradelora.errors import ChildFailed

GRACE_S = 10.0
TAIL_LINES = 25
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_live: set[int] = set()


def _die_with_parent() -> None:
    """In the child: SIGTERM when the parent dies, so that SIGKILL of a run leaves no trainer (prctl(2))."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_all() -> None:
    """End every child of this process that still runs, in whatever thread it was started."""
    for pid in tuple(_live):
        end_group(pid)


def run(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    deadline_s: float | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run `argv` to its end, its output appended to `log` and passed line by line to `on_line`.

    Raises ChildFailed with the exit code and the last lines, or at `deadline_s`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    child = subprocess.Popen(
        argv,
        preexec_fn=_die_with_parent,
        env=dict(env) if env is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    _live.add(child.pid)
    reader = threading.Thread(target=_pump, args=(child, log, tail, on_line), daemon=True)
    try:
        reader.start()
        exit_code = _wait(child, deadline_s)
    finally:
        # Also after success: a rank that its launcher forgot must not hold the GPU.
        end_group(child.pid)
        _live.discard(child.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    reader.join(GRACE_S)
    if exit_code != 0:
        what = "passed its deadline" if exit_code is None else _spell(exit_code)
        raise ChildFailed(f"{Path(argv[0]).name} {what}; log: {log}\n" + "\n".join(tail))


def _wait(child: subprocess.Popen[str], deadline_s: float | None) -> int | None:
    """The exit code, or None at the deadline.  Short waits: a thread cannot be interrupted in a long one."""
    started = time.monotonic()
    while True:
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            if deadline_s is not None and time.monotonic() - started > deadline_s:
                return None


def _pump(
    child: subprocess.Popen[str], log: Path, tail: collections.deque[str], on_line: Callable[[str], None]
) -> None:
    assert child.stdout is not None
    with log.open("a", encoding="utf-8") as sink:
        for line in child.stdout:
            sink.write(line)
            sink.flush()
            tail.append(line.rstrip("\n"))
            on_line(line.rstrip("\n"))


def _spell(exit_code: int) -> str:
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"


def end_group(pid: int, grace_s: float = GRACE_S) -> None:
    """SIGTERM to the process group of `pid`, SIGKILL to what is left of it after `grace_s`."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, sig)
        except ProcessLookupError:
            return
        until = time.monotonic() + grace_s
        while time.monotonic() < until and _alive(pid):
            time.sleep(0.05)


def _alive(pgid: int) -> bool:
    """Whether a process of the group still runs; zombies that nobody has reaped do not count."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pgid, os.WNOHANG)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == pgid and state != "Z":
                return True
    return False


def python(*arguments: str) -> list[str]:
    """The command line of this very interpreter."""
    return [sys.executable, *arguments]
