"""`make up` and `make down`: what is started is found again, and nothing else is ever stopped."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import processes, up
from gradelora.errors import BadConfig, ChildFailed
from tests.conftest import ROOT, free_port, wait_for
from tests.deployed import processes as listed

SECRETS = {
    "HF_TOKEN": "hf_of_the_worker",
    "AWS_SECRET_ACCESS_KEY": "key_of_the_mirror",
    "WANDB_API_KEY": "key_of_wandb",
}
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


def test_what_a_killed_worker_left_at_work_is_found_and_ended(tmp_path: Path) -> None:
    """A run's process and its stage's, each in a session of its own, as Prefect and launch.run start them."""
    stage = [sys.executable, "-c", f"import time; time.sleep(600) #{tmp_path}"]
    engine = f"import subprocess, time; subprocess.Popen({stage}, start_new_session=True); time.sleep(600)"
    env = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT__FLOW_RUN_ID": "run-1"}
    processes.start("x", [sys.executable, "-c", engine], folder=tmp_path, env=env, url="u")
    other = processes.start("y", SLEEP, folder=tmp_path, env={**env, "PREFECT_HOME": "/elsewhere"}, url="u")
    try:
        wait_for(lambda: len(processes.flow_runs(tmp_path)) == 2, 30, "the two were not found")
        assert processes.end_flow_runs(tmp_path) == {"run-1"}
        assert not listed(str(tmp_path))
        assert alive(other.pid)
    finally:
        processes.stop("y", tmp_path)


def test_a_long_log_begins_anew_under_its_writers_hands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES", 100)
    log = tmp_path / "x.log"
    with log.open("a") as writer:
        for text in ("short", "a long line" * 10):
            writer.write(text)
            writer.flush()
            processes.shorten("x", tmp_path)
        writer.write("new")
    assert log.read_text() == "new"
    assert log.with_suffix(".log.1").read_text().startswith("short" + "a long line")


def test_a_server_that_hangs_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the port, which another program holds here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(up, "HANGS_S", 0.1)
    up.MACHINE.mkdir(parents=True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        # It takes connections and never answers.
        other.listen()
        url = f"http://127.0.0.1:{other.getsockname()[1]}/api"
        hung = processes.start(up.SERVER, SLEEP, folder=up.MACHINE, env=os.environ, url=url)
        with pytest.raises(BadConfig, match="is taken"):
            up._server(None)
    assert not alive(hung.pid)
    assert "runs" not in capsys.readouterr().out


def test_a_worker_that_hangs_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(up, "HANGS_S", 0.1)
    up.MACHINE.mkdir(parents=True)
    hung = processes.start(up.WORKER, SLEEP, folder=up.MACHINE, env=os.environ, url="u")
    heard: list[int] = []
    # What the server says: nothing of the old one, then of the new one.
    monkeypatch.setattr(
        up, "_online", lambda *_: processes.running(up.WORKER, up.MACHINE) != hung and not heard.append(1)
    )
    try:
        up._worker("u")
        assert "started" in (told := capsys.readouterr().out)
        assert "gave no sign of life" in told
        wait_for(lambda: not alive(hung.pid), 30, "the one that hung was left")
        assert heard
    finally:
        processes.stop(up.WORKER, up.MACHINE)


@pytest.mark.slow
def test_a_database_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    up.HOME.mkdir(parents=True)
    (up.HOME / "prefect.db").write_text("no database" * 100)
    with pytest.raises(ChildFailed, match=r"cannot be read: .*file is not a database"):
        up._forgive({**up.environment("u"), "PYTHONPATH": str(ROOT)})


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
        # PWD as `make -C` and cron leave it.
        env={**os.environ, "PWD": "/", **SECRETS},
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
    for secret in SECRETS.values():
        assert secret in environment_of(pids["worker"])
        assert secret not in environment_of(pids["server"])
    for folder in (project / ".gradelora", machine, project / up.HOME):
        assert folder.stat().st_mode & 0o777 == 0o700

    engine = a_long_look(project, f"http://127.0.0.1:{port}/api")
    os.kill(pids["worker"], signal.SIGKILL)
    mended = run(project, "deployments.up", "--port", str(port))
    assert "worker: started" in mended.stdout
    assert "it had died" in mended.stdout
    assert "server: runs" in mended.stdout
    new = json.loads((machine / "worker.json").read_text())["pid"]

    assert alive(engine), "a run goes on without its worker"
    ended = run(project, "deployments.down")
    worker, cut_off, server = ended.stdout.splitlines()
    assert (worker, server) == ("worker: stopped", "server: stopped")
    assert "cut off" in cut_off
    assert not any(alive(pid) for pid in (pids["server"], new, engine))
    assert not processes.flow_runs(project / up.HOME)
    with closing(sqlite3.connect(project / up.HOME / "prefect.db")) as database:
        ((state,),) = database.execute("select state_name from flow_run where name = 'long-look'")
    assert state == "AwaitingRetry"
    assert run(project, "deployments.down").stdout.splitlines() == ["worker: did not run", "server: did not run"]


def a_long_look(project: Path, url: str) -> int:
    """Start a run of land/watch that waits for ten minutes between its looks; its process."""
    (project / "a.json").write_text("[]")
    watch = httpx.get(f"{url}/deployments/name/land/watch", timeout=60).json()
    # The runs' folder is this one, whatever PWD said.
    assert watch["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]
    parameters = {**watch["parameters"], "overrides": ["data.files=[a.json]"], "settle_s": 600}
    body: dict[str, Any] = {"name": "long-look", "parameters": parameters, "state": {"type": "SCHEDULED"}}
    made = httpx.post(f"{url}/deployments/{watch['id']}/create_flow_run", json=body, timeout=60).raise_for_status()
    mine = made.json()["id"]
    wait_for(lambda: httpx.get(f"{url}/flow_runs/{mine}").json()["state_type"] == "RUNNING", 120, "no run began")
    (engine,) = [group for group, run in processes.flow_runs(project / up.HOME).items() if run == mine]
    return engine


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
