"""A worker on another host takes a run from the pool; its token is nowhere but in its environment."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub
from tests.conftest import QUICK, ROOT, end, free_port, wait_for
from tests.network import BUCKET, S3, Network, hub_at, needs_namespaces, unplug

pytestmark = [pytest.mark.slow, needs_namespaces()]
TOKEN = "hf_QmNobodyMayEverReadThis"
PASSWORD = "operator:correct-horse"


@dataclass
class Finished:
    """One run from the pool: where everything that it could have written lies."""

    folder: Path
    hub: LoopbackHub
    s3: S3
    api: httpx.Client
    run: dict[str, Any] = field(default_factory=dict)
    command_lines: set[bytes] = field(default_factory=set)
    log: str = ""


class Watching(threading.Thread):
    """Every command line that the machine has shown while the run went on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.1):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(entry.read_bytes())
                except OSError:
                    continue


@pytest.fixture(scope="module")
def finished(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("token")
    shutil.copytree(ROOT / "data" / "sample", folder / "data")
    gated = {"access": {REPO_ID: "gated"}, "token": TOKEN}
    with Network(("w",)) as network, hub_at(network.address, repositories, **gated) as hub:
        s3, port = S3(network.address), free_port()
        url = f"http://{network.address}:{port}/api"
        common = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_"))}
        common |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder / "server"),
            "DO_NOT_TRACK": "1",
        }
        worker_env = {
            **common,
            **s3.env,
            "PREFECT_HOME": str(folder / "worker"),
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": hub.url,
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
        }
        server = _server(network.address, port, common, folder)
        worker = None
        try:
            for command in (
                ["work-pool", "create", "gradelora", "--type", "process"],
                ["deploy", "-n", "finetune/demo"],
            ):
                _prefect(common, "--no-prompt", *command)
            start = ("prefect", "worker", "start", "--pool", "gradelora", "--name", "elsewhere")
            worker = network.start("w", *start, env=worker_env, log=folder / "worker.log")
            done = Finished(folder, hub, s3, httpx.Client(base_url=url, auth=tuple(PASSWORD.split(":")), timeout=30))
            _run(done, common)
            yield done
        finally:
            if worker is not None:
                unplug(worker)
            end(server)
            s3.stop()


def _server(host: str, port: int, env: dict[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    health = f"{env['PREFECT_API_URL']}/health"
    wait_for(lambda: httpx.get(health, timeout=5).status_code < 500, 180, "the server did not start")
    return server


def _prefect(env: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _run(done: Finished, env: dict[str, str]) -> None:
    """Start the run, as an operator does who has no token, and wait for its end."""
    places = [f"data.files={done.folder}/data/*.json", f"store.root={done.folder}/store"]
    places += [f"runtime.hub_cache={done.folder}/hub", f"store.mirror=s3://{BUCKET}/team"]
    watching = Watching()
    watching.start()
    parameter = f"overrides={json.dumps([*QUICK, *places])}"
    try:
        done.log = _prefect(env, "deployment", "run", "finetune/demo", "--param", parameter, "--watch")
    finally:
        watching.stop.set()
        watching.join()
    done.command_lines = watching.seen
    done.run = done.api.post("/flow_runs/filter", json={"limit": 1}).raise_for_status().json()[0]


def test_a_worker_on_another_host_takes_a_run_from_the_pool(finished: Finished) -> None:
    assert finished.run["state_type"] == "COMPLETED", (finished.folder / "worker.log").read_text()[-4000:]
    workers = finished.api.post("/work_pools/gradelora/workers/filter", json={}).raise_for_status().json()
    assert [worker["name"] for worker in workers] == ["elsewhere"]
    names = finished.s3.names()
    for stage in ("validate", "encode", "train", "evaluate"):
        assert [n for n in names if n.startswith(f"team/artifacts/{stage}/") and n.endswith("receipt.json")], stage


def test_the_server_answers_nobody_without_its_password(finished: Finished) -> None:
    url = f"{finished.api.base_url}flow_runs/filter"
    assert httpx.post(url, json={}, timeout=30).status_code == 401
    assert httpx.post(url, json={}, auth=("operator", "guess"), timeout=30).status_code == 401


def test_the_token_is_in_no_file_of_the_run(finished: Finished) -> None:
    """Database, logs, results, reports, store, Hub cache, Prefect's homes: TOKEN and the mirror's secret."""
    secrets = (TOKEN.encode(), finished.s3.env["AWS_SECRET_ACCESS_KEY"].encode())
    read, database = 0, b""
    for path in finished.folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        read += 1
        assert not [secret for secret in secrets if secret in content], path
        if path.name.startswith("prefect.db"):
            database += content
    # The search would find what is there: the run is in the database, its files are among those read.
    assert finished.run["name"].encode() in database
    assert read > 50


def test_the_token_is_in_no_object_of_the_mirror(finished: Finished) -> None:
    client = finished.s3.client()
    for name in finished.s3.names():
        content = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        assert TOKEN.encode() not in content, name


def test_the_token_is_in_no_answer_of_the_server(finished: Finished) -> None:
    for path, body in (
        ("/logs/filter", {"limit": 200}),
        ("/artifacts/filter", {}),
        ("/task_runs/filter", {}),
        ("/flow_runs/filter", {}),
        ("/deployments/filter", {}),
        ("/events/filter", {"limit": 50}),
        ("/block_documents/filter", {"include_secrets": True}),
    ):
        answer = finished.api.post(path, json=body).raise_for_status().text
        assert TOKEN not in answer, path
    logs = finished.api.post("/logs/filter", json={"limit": 200}).json()
    assert len(logs) > 20


def test_the_token_is_in_no_command_line(finished: Finished) -> None:
    seen = b"\n".join(finished.command_lines)
    assert b"gradelora.train.rank" in seen, "the ranks' command lines were among those looked at"
    assert TOKEN.encode() not in seen
    assert PASSWORD.encode() not in seen
