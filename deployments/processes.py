"""Processes that outlive the command that started them, found again by pid, start time and boot."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradelora import launch
from gradelora.artifacts import Frozen
from gradelora.errors import ChildFailed

BOOT = Path("/proc/sys/kernel/random/boot_id")
TAIL_LINES = 15
STOP_S = 20.0
# Of a log; the one before it is kept beside it.
LOG_BYTES = 50_000_000


class Started(Frozen):
    """One process: a pid is used again, a pid with its start time since this boot is not."""

    pid: int
    start_ticks: int
    boot: str
    url: str


def start(name: str, argv: Sequence[str], *, folder: Path, env: Mapping[str, str], url: str) -> Started:
    """Start `argv` in a session of its own, its output in `folder`/`name`.log, its record beside it."""
    # A background shell ignores SIGINT, and every child would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (folder / f"{name}.log").open("a") as log:
        child = subprocess.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    started = Started(
        pid=child.pid, start_ticks=_start_ticks(child.pid) or 0, boot=BOOT.read_text(encoding="ascii").strip(), url=url
    )
    _record(folder, name).write_text(started.model_dump_json(), encoding="utf-8")
    return started


def running(name: str, folder: Path) -> Started | None:
    """The recorded process, if it is alive and the very one that was started."""
    started = recorded(name, folder)
    if started is None:
        return None
    same_boot = started.boot == BOOT.read_text(encoding="ascii").strip()
    return started if same_boot and _start_ticks(started.pid) == started.start_ticks else None


def recorded(name: str, folder: Path) -> Started | None:
    """The process that was started and that nobody has stopped; it may be dead."""
    record = _record(folder, name)
    return Started.model_validate_json(record.read_text(encoding="utf-8")) if record.is_file() else None


def stop(name: str, folder: Path) -> bool:
    """End the recorded process with its group; whether it ran.  Another process of that pid is left alone."""
    started = running(name, folder)
    if started is not None:
        launch.end_group(started.pid, STOP_S)
    _record(folder, name).unlink(missing_ok=True)
    return started is not None


def kill(name: str, folder: Path) -> None:
    """End the recorded process by SIGKILL, and it alone: a worker that hangs, not the runs that it has started."""
    started = running(name, folder)
    if started is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(started.pid, signal.SIGKILL)
    _record(folder, name).unlink(missing_ok=True)


def flow_runs(home: Path) -> dict[int, str]:
    """Process groups at work on runs of the server whose PREFECT_HOME this is, the oldest first: group to run.

    A worker gives each run a session of its own, a run each stage, and all of them inherit what names the run.
    """
    found: dict[int, str] = {}
    for entry in sorted((int(p.name) for p in Path("/proc").glob("[0-9]*")), key=lambda pid: _start_ticks(pid) or 0):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            runs = [line.partition(b"=")[2] for line in environ if line.startswith(b"PREFECT__FLOW_RUN_ID=")]
            if runs and f"PREFECT_HOME={home}".encode() in environ and _start_ticks(entry) is not None:
                found.setdefault(os.getpgid(entry), runs[0].decode())
    return found


def end_flow_runs(home: Path) -> set[str]:
    """End all of them; the runs."""
    ended: dict[int, str] = {}
    # A run's process first, which ends its stages' groups; then what it has left.
    while left := {group: run for group, run in flow_runs(home).items() if group not in ended}:
        group = next(iter(left))
        ended[group] = left[group]
        launch.end_group(group)
    return set(ended.values())


def shorten(name: str, folder: Path) -> None:
    """Begin the log anew once it is long; its writer holds it open and appends."""
    log = folder / f"{name}.log"
    if log.is_file() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


def wait_until(ready: Callable[[], bool], name: str, folder: Path, seconds: float) -> None:
    """Poll until `ready`.  Raises ChildFailed with the log's end where the process dies or takes longer."""
    until = time.monotonic() + seconds
    while not ready():
        log = folder / f"{name}.log"
        if running(name, folder) is None:
            raise ChildFailed(f"{name} ended while it started; {log} ends:\n{_tail(log)}")
        if time.monotonic() > until:
            raise ChildFailed(f"{name} is not ready after {seconds:.0f} s; {log} ends:\n{_tail(log)}")
        time.sleep(0.5)


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _start_ticks(pid: int) -> int | None:
    """Start time in clock ticks since boot, proc(5) field 22; None for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # An ended child that nobody has waited for is still listed.
    return None if fields[0] == "Z" else int(fields[19])


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
