import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradelora import child, launch
from gradelora.artifacts import ASIDE
from gradelora.config import Runtime
from gradelora.errors import BadData, ChildFailed
from tests.toy import Toy, ToyConfig, after, toy

RUNTIME = Runtime(threads=1)


def test_a_stage_in_a_child_gives_what_it_gives_here(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = Toy.collect(tmp_path, length=0)
    there = child.call(toy, ToyConfig(word="abc"), out=tmp_path / "a", runtime=RUNTIME)
    here = child.here(toy, ToyConfig(word="abc"), out=tmp_path / "b", runtime=RUNTIME)
    assert there.digest == here.digest
    assert before.digest != there.digest


def test_inputs_reach_the_child(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = child.here(toy, ToyConfig(word="abc"), out=tmp_path / "a", runtime=RUNTIME)
    second = child.call(after, ToyConfig(word="d"), first, out=tmp_path / "b", runtime=RUNTIME)
    assert second.length == 4


def test_what_a_stages_own_children_held_on_their_gpus_counts(tmp_path: Path) -> None:
    for rank, held in enumerate((5, 7)):
        aside = tmp_path / ASIDE / f"rank-{rank}" / ASIDE
        aside.mkdir(parents=True)
        used = child.Usage(seconds=1, peak_rss_bytes=1, peak_gpu_bytes=held)
        (aside / child.USAGE).write_text(used.model_dump_json())
    child.call(toy, ToyConfig(), out=tmp_path, runtime=RUNTIME)
    assert child.Usage.model_validate_json((tmp_path / ASIDE / child.USAGE).read_text()).peak_gpu_bytes == 7


def test_an_error_keeps_its_name_and_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"^data/x.json: empty; add answers$"):
        child.call(toy, ToyConfig(behaviour="refuse"), out=tmp_path, runtime=RUNTIME)


def test_a_killed_child_is_reported_with_its_signal(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        child.call(toy, ToyConfig(behaviour="die"), out=tmp_path, runtime=RUNTIME)


def test_a_failing_command_tells_exit_code_and_last_lines(tmp_path: Path) -> None:
    command = launch.python("-c", "print('about to fail'); raise SystemExit(7)")
    with pytest.raises(ChildFailed, match=r"exit code 7(?s:.*)about to fail"):
        launch.run(command, log=tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "about to fail\n"


def test_a_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    script = (
        "import subprocess,sys,time; p=subprocess.Popen(['sleep','600']); print(p.pid, flush=True); time.sleep(600)"
    )
    lines: list[str] = []
    with pytest.raises(ChildFailed, match="deadline"):
        launch.run(launch.python("-c", script), log=tmp_path / "log.txt", deadline_s=1.5, on_line=lines.append)
    assert gone(int(lines[0]))


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.end_group, "__defaults__", (0.5,))
    script = "import os,signal,time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    lines: list[str] = []
    with pytest.raises(ChildFailed, match="deadline"):
        launch.run(launch.python("-c", script), log=tmp_path / "log.txt", deadline_s=1.5, on_line=lines.append)
    assert gone(int(lines[0]))


def test_a_descendant_in_another_session_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rank that torchrun has started and that waits for its GPU."""
    monkeypatch.setattr(launch.end_group, "__defaults__", (0.5,))
    script = (
        "import os,signal,subprocess,time;"
        "p=subprocess.Popen(['sleep','600'], start_new_session=True); os.kill(p.pid, signal.SIGSTOP);"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    lines: list[str] = []
    with pytest.raises(ChildFailed, match="deadline"):
        launch.run(launch.python("-c", script), log=tmp_path / "log.txt", deadline_s=1.5, on_line=lines.append)
    assert gone(int(lines[0]))


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path, sig: signal.Signals) -> None:
    script = (
        "from pathlib import Path; from gradelora import child; from gradelora.config import Runtime;"
        "from tests.toy import toy, ToyConfig;"
        f"child.call(toy, ToyConfig(behaviour='hang'), out=Path({str(tmp_path)!r}), runtime=Runtime())"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    started = tmp_path / "started"
    until = time.monotonic() + 30
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < until, "the stage never began"
        time.sleep(0.05)
    parent.send_signal(sig)
    parent.wait()
    assert gone(int(started.read_text()))


def test_a_launcher_that_hangs_at_its_end_is_killed_after_its_parent(tmp_path: Path) -> None:
    """As torchrun does where a thread of its own is not told to end: the interpreter waits for it."""
    launcher = (
        "import os, subprocess, threading, time; from gradelora import launch; launch.outlive_parent_by(0.5);"
        "rank = subprocess.Popen(['sleep', '600'], start_new_session=True);"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{rank.pid}} ');"
        "threading.Thread(target=time.sleep, args=(600,)).start()"
    )
    script = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {launcher!r}], start_new_session=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    until = time.monotonic() + 30
    while not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith(" ")):
        assert time.monotonic() < until, "the launcher never began"
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    time.sleep(1.5)
    assert all(Path(f"/proc/{pid}").exists() for pid in pids), "its parent lives"
    parent.kill()
    parent.wait()
    assert all(map(gone, pids))


def gone(pid: int) -> bool:
    """Whether the process has ended, given a few seconds for it."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
