"""Real parts for the slow tests: a tiny gpt-oss on a loopback Hub, a Prefect server and worker."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gradelora import errors
from gradelora.artifacts import EncodedDataset, ModelSnapshot
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub

ROOT = Path(__file__).parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and every child would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# OpenMP's threads spin while they wait for each other: with other tests beside them on the same cores a small
# model scores many times slower so.  Sleeping changes no figure.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
STAGES = ("fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate")
# Four optimizer steps: enough to go through everything, too few to learn.
QUICK = ["train.max_steps=4", "train.warmup_steps=1", "evaluate.resamples=200", "merge.enabled=false"]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> ModelSnapshot:
    """A tiny random gpt-oss in MXFP4, one for each file of tests."""
    # torch, which most files do not need.
    from tests.tiny_data import snapshot_of
    from tests.tiny_models import save_gpt_oss

    return snapshot_of(save_gpt_oss(tmp_path_factory.mktemp("gpt-oss")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    """Answers of random tokens to a few questions, one data set for each file of tests."""
    from tests.tiny_data import save_encoded

    return save_encoded(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def repositories() -> Path:
    """A folder of Hub repositories with the tiny gpt-oss; built once for this checkout."""
    folder = ROOT / ".cache" / "tests" / "repositories"
    folder.mkdir(parents=True, exist_ok=True)
    build = [sys.executable, "-m", "gradelora.sandbox.tiny_gpt_oss", str(folder / REPO_ID)]
    # The tests beside these would build it once more, and replace it under the Hub that serves it.
    with (folder.parent / "repositories.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(build, check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def hub(repositories: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(repositories) as server:
        yield server


@dataclass(frozen=True)
class PrefectServer:
    """A running server: `env` is what a client, worker or flow needs to reach it."""

    env: dict[str, str]
    url: str

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """`python -m ARGUMENTS` against this server."""
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )


def sentence(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line `ErrorName: what, and the remedy` on stderr; Prefect's own lines begin with a time."""
    (line,) = [line for line in done.stderr.splitlines() if hasattr(errors, line.partition(":")[0])]
    return line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, hub: LoopbackHub) -> Iterator[PrefectServer]:
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Who waits for a slot asks again soon, and the server looks for dead ones' slots and due runs: not each minute.
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
        "HF_ENDPOINT": hub.url,
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "server.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        wait_for(lambda: httpx.get(f"{url}/health", timeout=5).is_success, 180, "the Prefect server did not start")
        httpx.post(f"{url}/v2/concurrency_limits/", json={"name": "gpu", "limit": 1}, timeout=60).raise_for_status()
        yield PrefectServer(env, url)
    finally:
        end(server)
        log.close()


def end(process: "subprocess.Popen[Any]") -> None:
    """Ask it to stop; a Prefect worker that has cancelled a run may hang on the way out."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(condition: Any, seconds: float, message: str) -> None:
    """Poll until `condition()` holds; a server that is not there yet is no failure."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError(message)


@dataclass
class Bench:
    """One deployment's folder: its data, store and cache, and a way to run the flow there."""

    server: PrefectServer
    folder: Path

    def overrides(self, *more: str) -> list[str]:
        places = [
            f"data.files={self.folder}/data/*.json",
            f"store.root={self.folder}/store",
            f"runtime.hub_cache={self.folder}/hub",
        ]
        return [*QUICK, *places, *more]

    def flow(self, *more: str, config: str = "deployments/demo.yaml") -> subprocess.CompletedProcess[str]:
        """`python -m flows.finetune --json` with the quick settings."""
        changes = [part for override in self.overrides(*more) for part in ("--set", override)]
        return self.server.run("flows.finetune", "--config", config, "--json", *changes)

    def states(self, *more: str) -> dict[str, str]:
        """Stage name to `cached` or `run` of one whole run."""
        done = self.flow(*more)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        outcome = json.loads(done.stdout.splitlines()[-1])
        return {s["stage"]: "cached" if s["cached"] else "run" for s in outcome["stages"]}


@pytest.fixture(scope="module")
def bench(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(ROOT / "data" / "sample", folder / "data")
    return Bench(prefect_server, folder)
