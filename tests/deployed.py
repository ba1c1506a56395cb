"""The deployments registered on the tests' server, a worker, and what a client sees of their runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from gradelora.store import read_receipt
from tests.conftest import ROOT, Bench, end, wait_for

POOL = "gradelora"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextmanager
def deployed(bench: Bench) -> Iterator["Deployed"]:
    """Everything registered as `make up` does it, and a worker that looks for runs every second."""
    done = bench.server.run("deployments.registration")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("land/watch", "resume/crashed"):
        switch_schedule(bench, name, on=False)
    with (bench.folder / "worker.log").open("w") as log:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
        env = {**bench.server.env, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Deployed(bench, process, datetime.now(UTC))
        finally:
            end(process)


def send(method: str, address: str, body: Any = None) -> Any:
    """What the server answers; as Prefect's own client does, one that is too busy (503) is asked again."""
    for wait_s in (1, 2, 4, 8, 16, 0):
        answer = httpx.request(method, address, json=body, timeout=180)
        if answer.status_code != 503:
            break
        time.sleep(wait_s)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def switch_schedule(bench: Bench, name: str, *, on: bool) -> None:
    """A deployment's own, which would look at data or start runs beside a test."""
    url = bench.server.url
    found = send("GET", f"{url}/deployments/name/{name}")
    (schedule,) = found["schedules"]
    address = f"{url}/deployments/{found['id']}/schedules/{schedule['id']}"
    send("PATCH", address, {"active": on})


@dataclass
class Deployed:
    """A bench whose flows are run by a worker, `since` then: other files' runs are on the same server."""

    bench: Bench
    worker: "subprocess.Popen[Any]"
    since: datetime

    @property
    def log(self) -> str:
        """The end of what the worker and its runs said."""
        return (self.bench.folder / "worker.log").read_text()[-6000:]

    def start(self, *overrides: str, deployment: str = "finetune/demo", **parameters: Any) -> str:
        """The id of a new run with the bench's places."""
        given = {"overrides": self.bench.overrides(*overrides), **parameters}
        return self.create(deployment, given, {"type": "SCHEDULED"})

    def start_by_command(self, *overrides: str, deployment: str = "finetune/demo") -> str:
        """The same by `prefect deployment run`, whose start alone takes seconds."""
        given = json.dumps(self.bench.overrides(*overrides))
        done = self.bench.server.run("prefect", "deployment", "run", deployment, f"--param=overrides={given}")
        assert done.returncode == 0, done.stdout + done.stderr
        return str(self.runs()[0]["id"])

    def post_run(self, name: str, parameters: dict[str, Any]) -> Any:
        """A run of any deployment to its end, without the command line."""
        return self.ended(self.create(name, parameters, {"type": "SCHEDULED"}))

    def create(self, name: str, parameters: dict[str, Any], state: dict[str, Any]) -> str:
        """The id of a new run of any deployment."""
        found = self.deployment(name)
        body = {"parameters": {**found["parameters"], **parameters}, "state": state}
        return str(self.post(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def run(self, *overrides: str, deployment: str = "finetune/demo", **parameters: Any) -> Any:
        """The same, to its end."""
        return self.ended(self.start(*overrides, deployment=deployment, **parameters))

    def ended(self, run_id: str, seconds: float = 400) -> Any:
        """The run once it has ended."""
        wait_for(lambda: self.read(run_id)["state_type"] in ENDED, seconds, f"run {run_id} did not end\n{self.log}")
        return self.read(run_id)

    def read(self, run_id: str) -> Any:
        return self.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})[0]

    def runs(self, flow: str | None = None) -> Any:
        """All runs since then, the newest first."""
        chosen = {"flows": {"name": {"any_": [flow]}}} if flow else {}
        found = self.post("/flow_runs/filter", {"sort": "ID_DESC", **chosen})
        mine = [r for r in found if datetime.fromisoformat(r["created"]) >= self.since]
        return sorted((r for r in mine if r["auto_scheduled"] is False), key=lambda r: str(r["created"]), reverse=True)

    def task_states(self, run_id: str) -> dict[str, str]:
        """Task name to state name; of a run that was retried, its last attempt."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        tasks = self.post("/task_runs/filter", body)
        return {r["name"].rpartition("-")[0] or r["name"]: r["state_name"] for r in tasks}

    def let_go(self, run_id: str) -> int:
        """How often the worker is through with a process of the run; it reports a crash until then."""
        chosen = {
            "event": {"name": ["prefect.worker.executed-flow-run"]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        return int(self.post("/events/filter", {"filter": chosen})["total"])

    def wait_until_let_go(self, run_id: str, times: int) -> None:
        """At most as long as docs/operations.md tells to wait before a retry: Prefect may lose an event."""
        until = time.monotonic() + 20
        while self.let_go(run_id) < times and time.monotonic() < until:
            time.sleep(0.3)

    def artifacts(self, run_id: str) -> dict[str, Any]:
        found = self.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "UPDATED_DESC"})
        return {a["key"]: a for a in reversed(found)}

    def post(self, path: str, body: Any) -> Any:
        return send("POST", f"{self.bench.server.url}{path}", body)

    def deployment(self, name: str) -> Any:
        return send("GET", f"{self.bench.server.url}/deployments/name/{name}")

    def set_parameters(self, name: str, parameters: dict[str, Any]) -> None:
        """What a run that a trigger or a schedule starts will be given."""
        found = self.deployment(name)
        body = {"parameters": {**found["parameters"], **parameters}}
        send("PATCH", f"{self.bench.server.url}/deployments/{found['id']}", body)


def processes(*words: str) -> dict[int, str]:
    """Pid to command line of every process whose command line holds all the words."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in command for word in words):
            found[int(entry.parent.name)] = command
    return found


def ranks(folder: Path) -> dict[int, str]:
    """Training processes that work in this folder."""
    return processes("gradelora.train.rank", str(folder))


def hold_training(folder: Path, log: Callable[[], str]) -> None:
    """Stop the ranks once a checkpoint is sealed in the folder's store: so short a training would end meanwhile."""
    until = time.monotonic() + 240
    while not list(folder.glob("store/train/.*/checkpoints/*/manifest.json")):
        assert time.monotonic() < until, f"no checkpoint was sealed\n{log()}"
        time.sleep(0.02)
    held = ranks(folder)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    assert held, "training had ended"


def kill_engine(folder: Path, stage: str, part: str = "") -> bool:
    """SIGKILL the flow's process while it runs `stage` in `folder`, asked for `part`; False where it does not."""
    for child, command in processes("gradelora.child", f"{folder}", f"/{stage}/.").items():
        try:
            if part not in Path(command.split()[-1]).read_text():
                continue
            parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            if parent > 1:
                os.kill(parent, signal.SIGKILL)
                return True
        except (OSError, ValueError):
            continue
    return False


def adapter_digest(store: Path) -> str:
    """Of the only adapter in a store."""
    (folder,) = [p for p in (store / "train").iterdir() if not p.name.startswith(".")]
    return read_receipt(folder).digest
