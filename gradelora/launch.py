"""Run a child in its own process group: log, deadline, cancellation, exit code.

Nothing that is started here outlives the call: an exception in the parent (a cancelled flow,
Ctrl-C, a deadline) ends the whole group by SIGTERM, and after a grace period by SIGKILL, with
whatever it has started in other groups.
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
from dataclasses import dataclass
from pathlib import Path

from gradelora.errors import ChildFailed

# A training seals what it has within train.cancel.SEAL_S of it; Prefect ends its run after 30 s.
GRACE_S = 26.0
TAIL_LINES = 25
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_live: set[int] = set()


def _die_with_parent() -> None:
    """In the child: SIGTERM when the parent dies, so that SIGKILL of a run leaves no trainer (prctl(2))."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def outlive_parent_by(grace_s: float) -> None:
    """From now on this process and its descendants are killed `grace_s` after its parent has died, if they still run.

    Nobody is left then to follow up the SIGTERM of `_die_with_parent`.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace_s)
        for each in sorted(_descendants(os.getpid()), key=lambda each: each.pid == os.getpid()):
            _signal(os.kill, each.pid, signal.SIGKILL)

    # Works on while the interpreter waits for other threads at its end.
    threading.Thread(target=watch, daemon=True).start()


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


@dataclass(frozen=True)
class Process:
    """What proc(5) says of one: a pid is used again, a pid with its start time is not."""

    pid: int
    parent: int
    group: int
    start_ticks: int


def end_group(pid: int, grace_s: float = GRACE_S) -> None:
    """SIGTERM to the process group of `pid`; SIGKILL, after `grace_s`, to what is left of it and of its descendants.

    torchrun gives every rank a session of its own, and one that hangs hears no SIGTERM.
    """
    table = _processes()
    family = _with_descendants({each for each in table if each.group == pid}, table)
    _signal(os.killpg, pid, signal.SIGTERM)
    left = _wait_for_the_end(pid, family, grace_s)
    for each in left:
        _signal(os.kill, each.pid, signal.SIGKILL)
    _wait_for_the_end(pid, left, grace_s if left else 0.0)


def _descendants(pid: int) -> set[Process]:
    """A process and all below it."""
    table = _processes()
    return _with_descendants({each for each in table if each.pid == pid}, table)


def _with_descendants(family: set[Process], table: set[Process]) -> set[Process]:
    while more := {each for each in table if each.parent in {one.pid for one in family}} - family:
        family |= more
    return family


def _signal(send: Callable[[int, int], None], pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(pid, sig)


def _wait_for_the_end(group: int, family: set[Process], seconds: float) -> set[Process]:
    """What is left of family and group once all is gone or it is late; processes may have begun in the group since."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(group, os.WNOHANG)
        known = {(each.pid, each.start_ticks) for each in family}
        left = {e for e in _processes() if e.group == group or (e.pid, e.start_ticks) in known}
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def _processes() -> set[Process]:
    """All that run; zombies that nobody has reaped do not count."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found.add(Process(int(stat.parent.name), int(fields[1]), int(fields[2]), int(fields[19])))
    return found


def python(*arguments: str) -> list[str]:
    """The command line of this very interpreter."""
    return [sys.executable, *arguments]
