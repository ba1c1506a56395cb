"""`prefect deployment run finetune/demo` on a real server with a real worker."""

from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Bench, wait_for
from tests.deployed import Deployed, deployed, ranks


@pytest.fixture(scope="module")
def worker(bench: Bench) -> Iterator[Deployed]:
    """The deployments registered, and a worker that waits for runs."""
    with deployed(bench) as running:
        yield running


@pytest.mark.slow
def test_a_users_mistake_is_the_flow_runs_message(worker: Deployed) -> None:
    done = worker.run("base.revision=nowhere")
    assert done["state_type"] == "FAILED"
    assert "nowhere" in done["state"]["message"]


@pytest.mark.slow
def test_cancelling_in_mid_training_leaves_no_process_and_the_next_run_resumes(worker: Deployed) -> None:
    changes, folder = ["train.max_steps=5000", "train.save_every=0.001"], worker.bench.folder
    first = worker.start(*changes)
    sealed = "store/train/.*/checkpoints/*/manifest.json"
    wait_for(lambda: list(folder.glob(sealed)), 240, f"no checkpoint was sealed\n{worker.log}")
    cancel(worker, first)
    assert list(folder.glob(sealed))
    second = worker.start(*changes)
    log = next(folder.glob("store/train/.*/aside/ranks.log"))
    wait_for(lambda: "resuming from step-" in log.read_text(), 240, f"it did not resume\n{worker.log}")
    cancel(worker, second)


def cancel(worker: Deployed, run_id: str) -> None:
    done = worker.bench.server.run("prefect", "flow-run", "cancel", run_id)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not ranks(worker.bench.folder), 90, "the ranks outlived the cancelled run")
    assert worker.ended(run_id, 60)["state_type"] == "CANCELLED"
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
