"""`make cluster-check`: Prefect on PostgreSQL with Redis, 20 flow runs at once, the servers killed in the middle.

Sixteen runs find everything cached, two evaluate anew, two train from nothing in one store that
they share.  When a quarter is done, the background services are killed (SIGKILL) and started
again, then one API server after the other is restarted (SIGTERM; SIGKILL with --hard).  Then: is
every run Completed, is every state of every run and task there, is the adapter the same everywhere?
Needs the Debian packages postgresql and redis-server; exit code 1 where something is lost.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from bench.cluster import ROOT, Cluster, wait_until
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub

POOL, RUNS, QUARTER = "cluster", 20, 5
QUICK = ["train.max_steps=4", "train.warmup_steps=1", "evaluate.resamples=200", "merge.enabled=false"]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Check:
    """The 20 runs of one cluster, and what became of them."""

    def __init__(self, cluster: Cluster, folder: Path, env: dict[str, str], hard: bool) -> None:
        self.cluster, self.folder, self.env, self.hard = cluster, folder, env, hard
        self.client = httpx.Client(base_url=cluster.url, timeout=60)
        self.runs: list[str] = []

    def overrides(self, store: str = "store", *more: str) -> list[str]:
        """Settings of one run."""
        places = [
            f"data.files={ROOT}/data/sample/*.json",
            f"store.root={self.folder}/{store}",
            f"runtime.hub_cache={self.folder}/hub",
        ]
        return [*QUICK, *places, *more]

    def prepare(self) -> str:
        """Do all the work once, without Prefect; the adapter's digest."""
        changes = [part for change in self.overrides() for part in ("--set", change)]
        command = [sys.executable, "-m", "gradelora.cli", "evaluate", "--config", "deployments/demo.yaml", *changes]
        subprocess.run(
            command, env=self.env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self.adapter("store")

    def adapter(self, store: str) -> str:
        """Digest of the one adapter in a store."""
        (receipt,) = (self.folder / store / "train").glob("*/receipt.json")
        digest: str = json.loads(receipt.read_text())["digest"]
        return digest

    def register(self) -> None:
        """The flow in a pool without a limit, and the training slot."""
        self.cluster.run("work-pool", "create", POOL, "--type", "process")
        self.cluster.run("gcl", "create", "gpu", "--limit", "1")
        deploy = ["--no-prompt", "deploy", "flows/finetune.py:finetune", "--name", POOL, "--pool", POOL]
        self.cluster.run(*deploy)

    def submit(self) -> None:
        """All runs at once."""
        found = self.client.get(f"/deployments/name/finetune/{POOL}").raise_for_status().json()["id"]
        kinds = [self.overrides("fresh")] * 2 + [self.overrides("store", "evaluate.resamples=300")] * 2
        kinds += [self.overrides()] * (RUNS - len(kinds))
        for kind in kinds:
            body = {"parameters": {"config": "deployments/demo.yaml", "overrides": kind}}
            made = self.client.post(f"/deployments/{found}/create_flow_run", json=body).raise_for_status()
            self.runs.append(made.json()["id"])

    def states(self) -> "collections.Counter[str]":
        """How many runs are in which state."""
        body = {"flow_runs": {"id": {"any_": self.runs}}, "limit": 200}
        return collections.Counter(run["state_type"] for run in self.post("/flow_runs/filter", body))

    def done(self, number: int) -> bool:
        """Whether so many have ended, however."""
        return sum(count for state, count in self.states().items() if state in FINAL) >= number

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the API answers."""
        return self.client.post(path, json=body).raise_for_status().json()

    def histories(self) -> list[list[str]]:
        """The states that each flow run went through."""
        found = []
        for run in self.runs:
            states = self.client.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
            found.append([state["type"] for state in sorted(states, key=lambda state: state["timestamp"])])
        return found

    def tasks(self) -> list["collections.Counter[str]"]:
        """Names of the states in which the tasks of each flow run ended."""
        found = []
        for run in self.runs:
            body = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}
            found.append(collections.Counter(task["state_name"] for task in self.post("/task_runs/filter", body)))
        return found

    def completed_events(self) -> int:
        """Completions that came through Redis as events: what automations hear of, no state."""
        body = {"filter": {"event": {"name": ["prefect.flow-run.Completed"]}}, "limit": 50}
        return int(self.post("/events/filter", body)["total"])


def check(folder: Path, workers: int, each: int, hard: bool) -> int:
    """Print what was found; 1 where something was lost."""
    cluster = Cluster(folder)
    repositories = ROOT / ".cache" / "tests" / "repositories"
    subprocess.run([sys.executable, "-m", "gradelora.sandbox.tiny_gpt_oss", str(repositories / REPO_ID)], check=True)
    with LoopbackHub(repositories) as hub:
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
        env = {**cluster.env, "HF_ENDPOINT": hub.url, "TORCH_EXTENSIONS_DIR": extensions, "OMP_NUM_THREADS": "1"}
        subject = Check(cluster, folder, env, hard)
        try:
            expected = subject.prepare()
            cluster.start_stores()
            print(
                f"API and services answered after {cluster.start_servers('api-0', 'api-1', 'services'):.1f} s",
                flush=True,
            )
            subject.register()
            for number in range(workers):
                cluster.start_worker(f"worker-{number}", POOL, each, env)
            return _watch(subject, expected)
        finally:
            cluster.stop()


def _watch(subject: Check, expected: str) -> int:
    cluster, started = subject.cluster, time.monotonic()
    subject.submit()
    wait_until(lambda: subject.done(QUARTER), f"{QUARTER} runs", 900)
    before = subject.states()
    restart = signal.SIGKILL if subject.hard else signal.SIGTERM
    for how, name in ((signal.SIGKILL, "services"), (restart, "api-0"), (restart, "api-1")):
        cluster.end(how, name)
        down = cluster.start_servers(name)
        print(f"{how.name} to {name} with {dict(before)}; up again after {down:.1f} s", flush=True)
        before = subject.states()
    wait_until(lambda: subject.done(RUNS), f"{RUNS} runs", 1800)
    seconds = time.monotonic() - started
    # Task states travel as events: the last ones may still be under way.
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not _faults(subject, expected), "every state", 60)
    faults = _faults(subject, expected)
    _show(subject, seconds)
    for fault in faults:
        print(f"LOST: {fault}")
    return 1 if faults else 0


def _faults(subject: Check, expected: str) -> list[str]:
    faults = []
    if (states := subject.states()) != {"COMPLETED": RUNS}:
        faults.append(f"{RUNS} Completed wanted, {dict(states)} found")
    for run, history in zip(subject.runs, subject.histories(), strict=True):
        if history[0] != "SCHEDULED" or history[-1] != "COMPLETED" or "RUNNING" not in history:
            faults.append(f"flow run {run}: states {history}")
    counts = subject.tasks()
    most = max(sum(count.values()) for count in counts)
    for run, count in zip(subject.runs, counts, strict=True):
        if set(count) - {"Completed", "Cached"} or sum(count.values()) != most:
            faults.append(f"flow run {run}: tasks {dict(count)} of {most}")
    for store in ("store", "fresh"):
        if (digest := subject.adapter(store)) != expected:
            faults.append(f"adapter in {store}: {digest}, {expected} wanted")
    return faults


def _show(subject: Check, seconds: float) -> None:
    tasks: collections.Counter[str] = collections.Counter()
    for count in subject.tasks():
        tasks.update(count)
    print(f"{RUNS} flow runs in {seconds:.0f} s: {dict(subject.states())}")
    print(f"task runs: {dict(tasks)}, {sum(tasks.values()) / RUNS:.1f} a flow run")
    print(f"adapter: {subject.adapter('store')[:16]} cached, {subject.adapter('fresh')[:16]} trained here")
    for table in ("flow_run", "flow_run_state", "task_run", "task_run_state", "events"):
        print(f"PostgreSQL {table}: {subject.cluster.rows(f'select count(*) from {table}')} rows")
    print(f"Redis: {subject.cluster.keys()} keys; events of the {RUNS} completions: {subject.completed_events()}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_check", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--each", type=int, default=3, help="flow runs at a time in a worker: 0.3 GB of memory each")
    parser.add_argument("--hard", action="store_true", help="SIGKILL to the API servers, too, in place of SIGTERM")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    arguments = parser.parse_args()
    # An exception, so that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="gradelora-cluster-"))
    try:
        return check(folder, arguments.workers, arguments.each, arguments.hard)
    finally:
        if arguments.keep:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
