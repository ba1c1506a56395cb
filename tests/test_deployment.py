"""`prefect deployment run finetune/demo` on a real server with a real worker."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Bench, end, wait_for

POOL = "gradelora"


@pytest.fixture(scope="module")
def worker(bench: Bench) -> Iterator[Bench]:
    """The deployments registered, and a worker that waits for runs."""
    server = bench.server
    for command in (["work-pool", "create", POOL, "--type", "process"], ["--no-prompt", "deploy", "--all"]):
        done = server.run("prefect", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    log = (bench.folder / "worker.log").open("w")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    process = subprocess.Popen(command, env=server.env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    yield bench
    end(process)
    log.close()


def run(bench: Bench, *more: str, watch: bool = True) -> "subprocess.CompletedProcess[str]":
    parameter = f"overrides={json.dumps(bench.overrides(*more))}"
    command = ["deployment", "run", "finetune/demo", "--param", parameter, *(["--watch"] if watch else [])]
    return bench.server.run("prefect", *command)


def post(bench: Bench, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{bench.server.url}{path}", json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()


def newest_run(bench: Bench) -> Any:
    return post(bench, "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0]


def task_states(bench: Bench) -> dict[str, str]:
    """Task name to state name of the newest flow run."""
    runs = post(bench, "/task_runs/filter", {"flow_runs": {"id": {"any_": [newest_run(bench)["id"]]}}})
    return {r["name"].rpartition("-")[0] or r["name"]: r["state_name"] for r in runs}


@pytest.mark.slow
def test_a_deployment_run_goes_through_and_the_next_one_is_cached(worker: Bench) -> None:
    first = run(worker)
    assert first.returncode == 0, first.stdout + first.stderr + (worker.folder / "worker.log").read_text()[-4000:]
    again = run(worker)
    assert again.returncode == 0, again.stdout + again.stderr
    states = task_states(worker)
    cached = {name for name, state in states.items() if state == "Cached"}
    assert cached >= {"fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate"}
    assert states["report"] == "Completed"
    keys = {a["key"] for a in post(worker, "/artifacts/latest/filter", {})}
    assert {"demo-stages", "demo-agreement"} <= keys


@pytest.mark.slow
def test_a_users_mistake_is_the_flow_runs_message(worker: Bench) -> None:
    done = run(worker, "base.revision=nowhere")
    assert done.returncode != 0
    newest = newest_run(worker)
    assert newest["state"]["type"] == "FAILED"
    assert "nowhere" in newest["state"]["message"]


@pytest.mark.slow
def test_cancelling_in_mid_training_leaves_no_process(worker: Bench) -> None:
    changes = ["train.max_steps=5000", "train.save_every=0.001"]
    started = run(worker, *changes, watch=False)
    assert started.returncode == 0
    wait_for(lambda: ranks(worker.folder), 120, "training never began")
    wait_for(
        lambda: list(worker.folder.glob("store/train/.*/checkpoints/*/manifest.json")), 120, "no checkpoint was sealed"
    )
    done = worker.server.run("prefect", "flow-run", "cancel", newest_run(worker)["id"])
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not ranks(worker.folder), 90, "the ranks outlived the cancelled run")
    assert list(worker.folder.glob("store/train/.*/checkpoints/*/manifest.json"))


def ranks(folder: Path) -> list[str]:
    """Command lines of training processes that work in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "gradelora.train.rank" in command and str(folder) in command:
            found.append(command)
    return found


def test_every_deployment_names_a_configuration_that_exists() -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in declared} >= {"demo", "laptop", "h200", "h200-merge", "watch"}
    for deployment in declared:
        # A look that meets another one is not needed; every other run waits for its turn.
        waits = "CANCEL_NEW" if deployment["name"] in ("watch", "crashed") else "ENQUEUE"
        assert waits == "CANCEL_NEW" or (ROOT / deployment["parameters"]["config"]).is_file()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": waits}
