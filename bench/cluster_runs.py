"""Flow runs of one Prefect server for `bench/cluster_check.py`: started, watched, and held against what must be."""

import collections
import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from bench.cluster import Cluster

DEMO = "finetune/demo"
STAGES = ("fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate")
# The tasks of one run without a merge, in any order; a stage ends as Cached where its artifact was there.
TASKS = sorted([*STAGES, "resolve", "collect", "preflight", "gate", "report"])
LIFE = ["PENDING", "RUNNING", "COMPLETED"]
# A flow run is Pending twice: the worker has taken it, and its process begins.
FLOW_LIFE = ["PENDING", *LIFE]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Runs:
    """What a client sees of the server's runs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.client = cluster, httpx.Client(base_url=cluster.url, timeout=60)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the API answers."""
        return self.client.post(path, json=body).raise_for_status().json()

    def deployment(self, name: str) -> Any:
        """A registered deployment by flow/name."""
        return self.client.get(f"/deployments/name/{name}").raise_for_status().json()

    def change(self, name: str, **changes: Any) -> None:
        """Fields of a deployment, as the UI changes them."""
        self.client.patch(f"/deployments/{self.deployment(name)['id']}", json=changes).raise_for_status()

    def pause(self, name: str) -> None:
        """A deployment's own schedule."""
        found = self.deployment(name)
        for schedule in found["schedules"]:
            address = f"/deployments/{found['id']}/schedules/{schedule['id']}"
            self.client.patch(address, json={"active": False}).raise_for_status()

    def start(self, name: str, **parameters: Any) -> str:
        """The id of a new run."""
        found = self.deployment(name)
        body = {"parameters": {**found["parameters"], **parameters}, "state": {"type": "SCHEDULED"}}
        made = self.post(f"/deployments/{found['id']}/create_flow_run", body)
        return str(made["id"])

    def read(self, runs: Sequence[str]) -> list[Any]:
        """These runs as they are now."""
        return list(self.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": list(runs)}}, "limit": 200}))

    def of(self, name: str) -> list[Any]:
        """All runs of a deployment."""
        return list(self.post("/flow_runs/filter", {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}}))

    def states(self, runs: Sequence[str]) -> "collections.Counter[str]":
        """How many runs are in which state."""
        return collections.Counter(run["state_type"] for run in self.read(runs))

    def ended(self, runs: Sequence[str]) -> bool:
        """Whether all have ended, however."""
        return sum(count for state, count in self.states(runs).items() if state in FINAL) == len(runs)

    def history(self, run: str) -> list[tuple[str, datetime]]:
        """The states that a flow run went through, with their times."""
        states = self.client.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
        return sorted(((s["type"], datetime.fromisoformat(s["timestamp"])) for s in states), key=lambda s: s[1])

    def tasks(self, run: str) -> dict[str, str]:
        """Name of each of a flow run's tasks to the name of the state in which it is."""
        found = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return {task["name"].rpartition("-")[0] or task["name"]: task["state_name"] for task in found}

    def task_lives(self, run: str) -> list[str]:
        """The states of each task of a flow run in PostgreSQL itself, one line a task."""
        told = "string_agg(s.type::text, ' ' order by s.timestamp)"
        joined = "task_run t join task_run_state s on s.task_run_id = t.id"
        return self.cluster.rows(f"select {told} from {joined} where t.flow_run_id = '{run}' group by t.id").split("\n")

    def faults(self, run: str) -> list[str]:
        """What is wrong with a run that should have gone through without a stop, once its turn had come."""
        found = []
        history = [state for state, _ in self.history(run)]
        if history[:1] != ["SCHEDULED"] or [state for state in history if state != "SCHEDULED"] != FLOW_LIFE:
            found.append(f"flow run {run}: states {history}")
        tasks = self.tasks(run)
        if sorted(tasks) != TASKS or set(tasks.values()) - {"Completed", "Cached"}:
            found.append(f"flow run {run}: tasks {tasks}")
        if (lives := collections.Counter(self.task_lives(run))) != {" ".join(LIFE): len(TASKS)}:
            found.append(f"flow run {run}: states of its tasks {dict(lives)}")
        return found

    def cached(self, runs: Sequence[str]) -> int:
        """How many tasks of these runs found their artifact."""
        return sum(state == "Cached" for run in runs for state in self.tasks(run).values())

    def overlaps(self, runs: Sequence[str]) -> int:
        """How many of them began to run before the one that began before them had ended."""
        times = sorted((dict(self.history(run))["RUNNING"], dict(self.history(run))["COMPLETED"]) for run in runs)
        return sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(times))

    def completed_events(self) -> int:
        """Completions that came through Redis as events: what automations hear of, no state."""
        body = {"filter": {"event": {"name": ["prefect.flow-run.Completed"]}}, "limit": 50}
        return int(self.post("/events/filter", body)["total"])
