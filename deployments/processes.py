"""Processes that outlive the command that started them, found again by pid, start time and boot."""

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
