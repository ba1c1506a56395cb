"""`make up` and `make down`: what is started is found again, and nothing else is ever stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import processes, up
from gradelora.errors import BadConfig, ChildFailed
from tests.conftest import ROOT, free_port, wait_for
from tests.deployed import processes as listed

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[processes.Started]:
    started = processes.start("x", SLEEP, folder=tmp_path, env=os.environ, url="u")
    yield started
    processes.stop("x", tmp_path)


def test_a_process_is_found_again_and_stopped(sleeper: processes.Started, tmp_path: Path) -> None:
    assert processes.running("x", tmp_path) == sleeper
    assert processes.stop("x", tmp_path)
    assert processes.running("x", tmp_path) is None
    assert not processes.stop("x", tmp_path)
    assert not listed("time.sleep(600)", str(sleeper.pid))


@pytest.mark.parametrize("stale", [{"start_ticks": 1}, {"boot": "another"}])
def test_a_pid_that_is_used_again_is_nobody_of_ours(
    sleeper: processes.Started, tmp_path: Path, stale: dict[str, object]
) -> None:
    record = tmp_path / "x.json"
    before = record.read_text()
    record.write_text(json.dumps({**json.loads(before), **stale}))
    assert processes.running("x", tmp_path) is None
    assert not processes.stop("x", tmp_path)
    os.kill(sleeper.pid, 0)
    record.write_text(before)


def test_one_that_dies_while_it_starts_is_told_with_its_last_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('no such column'); raise SystemExit(1)"]
    processes.start("x", argv, folder=tmp_path, env=os.environ, url="u")
    with pytest.raises(ChildFailed, match="no such column"):
        processes.wait_until(lambda: False, "x", tmp_path, 30)


def test_a_port_that_another_program_holds_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadConfig, match=f"{port} is taken .* make up PORT={port + 1}"):
            up.up(port, [])
    assert not (tmp_path / ".gradelora" / "machine" / "server.json").exists()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a clone holds."""
    copy = tmp_path_factory.mktemp("machine")
    for name in ("gradelora", "flows", "tasks", "deployments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", copy)
    yield copy
    run(project=copy, module="deployments.down")


def run(project: Path, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=project,
        env={**os.environ, "HF_TOKEN": "hf_of_the_worker"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended may still wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_up_twice_and_down(project: Path) -> None:
    port = free_port()
    first = run(project, "deployments.up", "--port", str(port))
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"UI: http://127.0.0.1:{port}" in first.stdout
    again = run(project, "deployments.up", "--port", str(port))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing changed" in again.stdout
    assert "started" not in again.stdout

    machine = project / ".gradelora" / "machine"
    pids = {name: json.loads((machine / f"{name}.json").read_text())["pid"] for name in ("server", "worker")}
    assert "hf_of_the_worker" in environment_of(pids["worker"])
    assert "hf_of_the_worker" not in environment_of(pids["server"])
    for folder in (project / ".gradelora", machine, project / ".gradelora" / "prefect"):
        assert folder.stat().st_mode & 0o777 == 0o700

    os.kill(pids["worker"], signal.SIGKILL)
    mended = run(project, "deployments.up", "--port", str(port))
    assert "worker: started" in mended.stdout
    assert "it had died" in mended.stdout
    assert "server: runs" in mended.stdout
    new = json.loads((machine / "worker.json").read_text())["pid"]

    ended = run(project, "deployments.down")
    assert ended.stdout.splitlines() == ["worker: stopped", "server: stopped"]
    assert not any(alive(pid) for pid in (pids["server"], new))
    assert run(project, "deployments.down").stdout.splitlines() == ["worker: did not run", "server: did not run"]


def test_a_server_that_died_comes_back_where_its_runs_look_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    up.MACHINE.mkdir(parents=True)
    port = free_port()
    processes.start(up.SERVER, ["true"], folder=up.MACHINE, env=os.environ, url=f"http://127.0.0.1:{port}/api")
    wait_for(lambda: processes.running(up.SERVER, up.MACHINE) is None, 30, "what stands for the server did not end")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(BadConfig, match=f"127.0.0.1:{port} is taken"):
            up._server(None)
