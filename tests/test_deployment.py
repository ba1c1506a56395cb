"""`prefect deployment run finetune/demo` on a real server with a real worker."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from deployments.processes import flow_runs
from tests.conftest import ROOT, Bench, wait_for
from tests.deployed import Deployed, adapter_digest, deployed, hold_training, processes


@pytest.fixture(scope="module")
def worker(bench: Bench) -> Iterator[Deployed]:
    """The deployments registered, and a worker that waits for runs."""
    with deployed(bench) as running:
        yield running


@pytest.mark.slow
def test_a_users_mistake_is_the_flow_runs_message(worker: Deployed) -> None:
    done = worker.ended(worker.start_by_command("base.revision=nowhere"))
    assert done["state_type"] == "FAILED"
    assert "nowhere" in done["state"]["message"]


@pytest.mark.slow
def test_cancelling_in_mid_training_leaves_no_process_and_the_next_run_ends_with_the_undisturbed_adapter(
    worker: Deployed,
) -> None:
    changes, folder = ["train.max_steps=16", "train.save_every=0.125"], worker.bench.folder
    first = worker.start_by_command(*changes)
    hold_training(folder, lambda: worker.log)
    cancel(worker, first)
    wait_for(lambda: not processes_of(worker, first), 30, f"left: {processes_of(worker, first)}")
    assert not processes(f"{folder}/store")
    second = worker.ended(worker.start_by_command(*changes))
    assert second["state_type"] == "COMPLETED", worker.log
    (sealed,) = [p for p in (folder / "store" / "train").iterdir() if not p.name.startswith(".")]
    assert "resuming from step-" in (sealed / "aside" / "ranks.log").read_text()
    for stage in ("fetch", "validate", "encode"):
        shutil.copytree(folder / "store" / stage, folder / "undisturbed" / stage)
    elsewhere = worker.bench.overrides(*changes, f"store.root={folder}/undisturbed")
    settings = [part for change in elsewhere for part in ("--set", change)]
    done = worker.bench.server.run("gradelora.cli", "train", "--config", "deployments/demo.yaml", *settings)
    assert done.returncode == 0, done.stderr
    assert adapter_digest(folder / "store") == adapter_digest(folder / "undisturbed")


def processes_of(worker: Deployed, run_id: str) -> list[int]:
    """Process groups of any kind that work on the run, by what their environment says."""
    home = Path(worker.bench.server.env["PREFECT_HOME"])
    return [group for group, run in flow_runs(home).items() if run == run_id]


def cancel(worker: Deployed, run_id: str) -> None:
    assert processes_of(worker, run_id), "the search would find what is there"
    done = worker.bench.server.run("prefect", "flow-run", "cancel", run_id)
    assert done.returncode == 0, done.stderr
    assert worker.ended(run_id, 90)["state_type"] == "CANCELLED"
    limits = httpx.get(f"{worker.bench.server.url}/v2/concurrency_limits/gpu", timeout=60).json()
    assert limits["active_slots"] == 0


def test_every_deployment_names_a_configuration_that_exists() -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in declared} >= {"demo", "laptop", "h200", "h200-merge", "batch", "watch", "crashed"}
    for deployment in declared:
        # A look that meets another one is not needed; every other run waits for its turn.
        waits = "CANCEL_NEW" if deployment["name"] in ("watch", "crashed") else "ENQUEUE"
        assert waits == "CANCEL_NEW" or (ROOT / deployment["parameters"]["config"]).is_file()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": waits}
        assert deployment["work_pool"]["name"] == "gradelora"
        # Without it a healthy run would count as dead: Prefect's own heartbeat comes every 180 s.
        assert deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


@pytest.mark.slow
def test_every_parameter_is_described_in_the_ui(worker: Deployed) -> None:
    for declared in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        name = f"{declared['entrypoint'].rpartition(':')[2]}/{declared['name']}"
        schema = worker.deployment(name)["parameter_openapi_schema"]
        assert all(field.get("description") for field in schema["properties"].values()), name
