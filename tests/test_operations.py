"""What a team relies on that leaves it running: new data, dead processes, refusals, alerts; on a real server."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.processes import flow_runs
from flows.land import land
from gradelora.champion import champion_of
from gradelora.landing import Seen
from tests.conftest import ROOT, Bench, wait_for
from tests.deployed import Deployed, adapter_digest, deployed, kill_engine, processes, send, switch_schedule
from tests.webhook import NAME, Webhook, webhook

pytestmark = pytest.mark.slow
FILES = 10
# Enough for a gain that the gate can see: such an adapter is promoted and merged.
LEARNS = ("train.max_steps=30", "train.warmup_steps=5", "merge.enabled=true")


@pytest.fixture(scope="module")
def hook(bench: Bench) -> Iterator[Webhook]:
    with webhook(bench.server) as hook:
        yield hook


@pytest.fixture(scope="module")
def running(bench: Bench, hook: Webhook) -> Iterator[Deployed]:
    """Whoever is to be told is told from the first run on."""
    with deployed(bench) as running:
        done = bench.server.run("deployments.registration", "--notify", NAME)
        assert "created automation: tell of failed runs" in done.stdout, done.stderr
        running.set_parameters("finetune/demo", {"overrides": bench.overrides(*LEARNS)})
        yield running


def drop(folder: Path) -> None:
    """The sample's records as ten files in place of its own."""
    records = []
    for path in sorted(folder.glob("*.json")):
        records += json.loads(path.read_text())
        path.unlink()
    for number in range(FILES):
        (folder / f"part_{number}.json").write_text(json.dumps(records[number::FILES]))


def look(running: Deployed) -> tuple[str, str]:
    """State name and message of one `land/watch`."""
    run = running.run(deployment="land/watch", config="deployments/demo.yaml", settle_s=1)
    return run["state_name"], run["state"]["message"]


def finetunes(running: Deployed) -> list[Any]:
    return list(running.runs("finetune"))


@pytest.fixture(scope="module")
def landed(running: Deployed) -> Any:
    """The run that ten new files have started."""
    drop(running.bench.folder / "data")
    assert look(running)[0] == "Landed"
    wait_for(lambda: finetunes(running), 60, "no run was started")
    return running.ended(finetunes(running)[0]["id"])


def test_ten_files_at_once_start_one_run(running: Deployed, landed: Any) -> None:
    assert landed["state_type"] == "COMPLETED", running.log
    assert landed["created_by"]["type"] == "AUTOMATION"
    assert len(finetunes(running)) == 1


def test_a_run_that_did_everything_shows_how_far_download_training_and_merge_are(
    running: Deployed, landed: Any
) -> None:
    shown = running.artifacts(landed["id"])
    for stage in ("fetch-tokenizer", "fetch-everything", "train", "merge"):
        assert shown[f"demo-{stage}"]["type"] == "progress", stage
        assert shown[f"demo-{stage}"]["data"] == 100.0
    # The last line that the stage said stands beside the bar.
    assert "30/30" in shown["demo-train"]["description"]


def test_a_promoted_adapter_is_champion_and_told_once(running: Deployed, landed: Any, hook: Webhook) -> None:
    champion = champion_of(running.bench.folder / "store", "demo")
    assert champion is not None
    assert champion.adapter.digest == adapter_digest(running.bench.folder / "store")
    wait_for(lambda: hook.told("adapter promoted (demo)"), 60, f"{hook.received}")
    (body,) = hook.told("adapter promoted (demo)")
    assert body.startswith("promoted on unseen_answers")


def test_a_touched_file_starts_none_and_shows_why(running: Deployed, landed: Any) -> None:
    os.utime(running.bench.folder / "data" / "part_0.json", ns=(1, 1))
    name, message = look(running)
    assert name == "NothingNew"
    assert "same contents" in message
    assert len(finetunes(running)) == 1


def test_a_run_on_unchanged_data_is_cached_whole_shows_everything_and_needs_no_gpu(
    running: Deployed, landed: Any
) -> None:
    """The GPU's only slot is taken meanwhile."""
    slots = {"names": ["gpu"], "slots": 1, "mode": "concurrency"}
    running.post("/v2/concurrency_limits/increment", slots)
    try:
        run = running.run(*LEARNS)
    finally:
        running.post("/v2/concurrency_limits/decrement", slots)
    assert run["state_type"] == "COMPLETED", running.log
    states = running.task_states(run["id"])
    cached = {name for name, state in states.items() if state == "Cached"}
    assert cached >= {"fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate", "merge"}
    kinds = ("plan", "validation", "loss", "agreement", "stages", "report", "base-model")
    shown = running.artifacts(run["id"])
    assert {f"demo-{kind}" for kind in kinds} <= set(shown)
    # A browser would refuse an address on the worker's disk: it stands there as text, with a way to it.
    assert f"scp {socket.gethostname()}:" in shown["demo-report"]["data"]


def over_a_minute_ago(running: Deployed) -> None:
    """The trigger's window, over at once; later than the run that ten files have started."""
    state = running.bench.folder / "store" / "landing" / "demo.json"
    seen = Seen.model_validate_json(state.read_text())
    state.write_text(seen.model_copy(update={"accepted": seen.accepted - 61}).model_dump_json())


def switch_trigger(running: Deployed, *, on: bool) -> None:
    """An event that comes while it is off starts nothing: as good as lost."""
    found = running.post("/automations/filter", {"automations": {"name": {"any_": ["new data start finetune/demo"]}}})
    address = f"{running.bench.server.url}/automations/{found[0]['id']}"
    send("PATCH", address, {"enabled": on})
    # The server's triggers learn of it within moments.
    time.sleep(5)


def test_lost_news_are_told_again_and_bad_data_end_the_run_with_a_report_and_keep_the_champion(
    running: Deployed, landed: Any
) -> None:
    root, bad = running.bench.folder / "store", running.bench.folder / "data" / "bad.json"
    champion = champion_of(root, "demo")
    before = len(finetunes(running))
    over_a_minute_ago(running)
    bad.write_text('[{"record_id": ')
    try:
        switch_trigger(running, on=False)
        name, message = look(running)
        assert (name, "told again" in message) == ("Landed", False)
        switch_trigger(running, on=True)
        assert "less than 60 s ago" in look(running)[1]
        assert len(finetunes(running)) == before
        over_a_minute_ago(running)
        name, message = look(running)
        assert (name, "told again" in message) == ("Landed", True)
        wait_for(lambda: len(finetunes(running)) > before, 90, "no run was started")
        run = running.ended(finetunes(running)[0]["id"])
        assert run["state_type"] == "FAILED"
        assert "bad.json" in run["state"]["message"]
        report = running.artifacts(run["id"])["demo-validation"]
        assert "the run is blocked" in report["description"]
        assert "bad.json" in json.dumps(report["data"])
        assert champion_of(root, "demo") == champion
        # The same bad files do not start a run again and again.
        assert look(running)[0] == "NothingNew"
    finally:
        bad.unlink()


STAGES = ("fetch", "validate", "encode", "train", "evaluate", "merge")


@pytest.mark.timeout(1800)
def test_an_engine_killed_in_every_stage_ends_with_the_undisturbed_adapter(running: Deployed, landed: Any) -> None:
    """Once it goes on by resume/crashed, then by `prefect flow-run retry`."""
    folder = running.bench.folder
    undisturbed = adapter_digest(folder / "store")
    run_id = running.start(*LEARNS, f"store.root={folder}/again", f"runtime.hub_cache={folder}/again-hub")
    try:
        for kills, stage in enumerate(STAGES, start=1):
            kill_in(running, folder / "again", stage)
            if stage == "evaluate":
                # That a dead run's slot comes free by itself is seen after train; two more would take a minute each.
                set_slots(running, 3)
            wait_for(lambda: running.read(run_id)["state_type"] == "CRASHED", 60, running.log)
            running.wait_until_let_go(run_id, kills)
            if kills == 1:
                resumed = running.post_run("resume/crashed", {"after_s": 0})
                assert "started again" in resumed["state"]["message"]
                assert running.read(run_id)["state_type"] != "CRASHED"
            else:
                done = running.bench.server.run("prefect", "flow-run", "retry", run_id)
                assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: running.read(run_id)["state_type"] == "COMPLETED", 300, running.log)
    finally:
        set_slots(running, 1)
    assert running.read(run_id)["run_count"] == len(STAGES) + 1
    assert adapter_digest(folder / "again") == undisturbed
    (sealed,) = [p for p in (folder / "again" / "train").iterdir() if not p.name.startswith(".")]
    assert "resuming from step-" in (sealed / "aside" / "ranks.log").read_text()
    assert not processes(f"{folder}/again")


def set_slots(running: Deployed, limit: int) -> None:
    """How many runs may train, evaluate or merge at once."""
    send("PATCH", f"{running.bench.server.url}/v2/concurrency_limits/gpu", {"limit": limit})


def kill_in(running: Deployed, store: Path, stage: str) -> None:
    """SIGKILL the engine as soon as it runs `stage`; train not before a checkpoint is sealed, fetch at the weights."""
    deadline = time.monotonic() + 600
    while stage == "train" and not list(store.glob("train/.*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline, f"no checkpoint\n{running.log}"
        time.sleep(0.02)
    part = "everything" if stage == "fetch" else ""
    while not kill_engine(store, stage, part):
        assert time.monotonic() < deadline, f"{stage} was never seen\n{running.log}"
        time.sleep(0.02)


def test_two_runs_of_one_configuration_at_once_train_once(running: Deployed, landed: Any, hook: Webhook) -> None:
    bench = running.bench
    changes = [part for change in bench.overrides("train.learning_rate=1e-3") for part in ("--set", change)]
    command = [sys.executable, "-m", "flows.finetune", "--config", "deployments/demo.yaml", "--json", *changes]
    both = [
        subprocess.Popen(command, env=bench.server.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    outcomes = [json.loads(process.communicate(timeout=800)[0].splitlines()[-1]) for process in both]
    trained = [s["cached"] for outcome in outcomes for s in outcome["stages"] if s["stage"] == "train"]
    assert sorted(trained) == [False, True]
    # Four steps gain nothing over the champion.
    wait_for(lambda: hook.told("adapter refused (demo)"), 60, f"{hook.received}")
    (body,) = hook.told("adapter refused (demo)")
    assert body.startswith("refused on unseen_answers")


def test_people_are_told_of_failures_budgets_and_runs_that_nobody_takes_up(running: Deployed, hook: Webhook) -> None:
    server = running.bench.server
    absent = server.run("deployments.registration", "--notify", "slack-webhook/absent")
    assert absent.returncode == 2
    assert NAME in absent.stderr
    again = server.run("deployments.registration", "--notify", NAME)
    assert "nothing changed" in again.stdout
    failed = running.run("train.learning_rate=2e-3", "runtime.budget_hours=1e-6")
    assert failed["state_type"] == "FAILED"
    switch_pool(running, paused=True)
    late = running.create("finetune/demo", {"config": "deployments/absent.yaml"}, {"type": "SCHEDULED"})
    try:
        for subject in ("budget reached (demo)", "Failed", "no worker takes up runs"):
            wait_for(lambda subject=subject: hook.told(subject), 90, f"{subject}: {hook.received}")
    finally:
        switch_pool(running, paused=False)
    assert any("hours are used up" in body for body in hook.told("Failed"))
    assert running.ended(late)["state_type"] == "FAILED"


def switch_pool(running: Deployed, *, paused: bool) -> None:
    address = f"{running.bench.server.url}/work_pools/gradelora"
    send("PATCH", address, {"is_paused": paused})


def test_a_run_that_nobody_begins_goes_on_and_one_that_nobody_ends_is_cancelled(running: Deployed, landed: Any) -> None:
    """A machine that died in the seconds before a run began, or while it was being cancelled."""
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    given = {"overrides": running.bench.overrides(*LEARNS)}
    pending, cancelling = (running.create("finetune/demo", given, later) for _ in range(2))
    force(running, pending, "PENDING")
    force(running, cancelling, "CANCELLING")
    assert "cancelled: none" in running.post_run("resume/crashed", {})["state"]["message"]
    looked = running.post_run("resume/crashed", {"stuck_minutes": 0})
    assert running.read(pending)["name"] in looked["state"]["message"]
    assert running.read(cancelling)["state_type"] == "CANCELLED"
    assert running.ended(pending)["state_type"] == "COMPLETED", running.log


def force(running: Deployed, run_id: str, state: str) -> None:
    running.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": state}, "force": True})


def test_a_silent_run_becomes_crashed_and_a_healthy_one_of_that_age_goes_on(running: Deployed, landed: Any) -> None:
    """Two heartbeats and a half where the automation allows ten."""
    allowed = 75.0
    set_silence(running, allowed)
    healthy = running.start(deployment="land/watch", config="deployments/demo.yaml", settle_s=1000)
    silent = running.start("train.max_steps=5000")
    home = Path(running.bench.server.env["PREFECT_HOME"])
    try:
        for run_id in (healthy, silent):
            wait_for(lambda run_id=run_id: heartbeats(running, run_id), 120, f"no heartbeat\n{running.log}")
        engine = next(group for group, run in flow_runs(home).items() if run == silent)
        os.killpg(engine, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_for(lambda: running.read(silent)["state_type"] == "CRASHED", 2 * allowed, "it never counted as dead")
        assert time.monotonic() - stopped > allowed - 35
        assert "no heartbeat" in running.read(silent)["state"]["message"]
        assert running.read(healthy)["state_type"] == "RUNNING"
        assert heartbeats(running, healthy) >= 3
    finally:
        for run_id in (silent, healthy):
            send("DELETE", f"{running.bench.server.url}/flow_runs/{run_id}")
        for group, run in flow_runs(home).items():
            if run in (silent, healthy):
                os.killpg(group, signal.SIGKILL)
    renewed = running.bench.server.run("deployments.registration")
    assert "renewed automation: dead runs are marked Crashed" in renewed.stdout, renewed.stderr


def set_silence(running: Deployed, seconds: float) -> None:
    chosen = {"automations": {"name": {"any_": ["dead runs are marked Crashed"]}}}
    (found,) = running.post("/automations/filter", chosen)
    trigger = found["trigger"] | {"within": seconds}
    names = ("name", "description", "enabled", "tags", "actions", "actions_on_trigger", "actions_on_resolve")
    body = {name: found[name] for name in names} | {"trigger": trigger}
    address = f"{running.bench.server.url}/automations/{found['id']}"
    send("PUT", address, body)
    time.sleep(5)


def heartbeats(running: Deployed, run_id: str) -> int:
    chosen = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
    return int(running.post("/events/filter", {"filter": chosen})["total"])


HANGS = """
from flows.land import land
land.with_options(timeout_seconds=3)(config="deployments/demo.yaml", overrides=[{place!r}], settle_s=600)
"""


def test_a_look_that_hangs_ends_by_itself(running: Deployed) -> None:
    """Else every later look would be dropped while it goes on."""
    assert land.timeout_seconds == 3600
    code = HANGS.format(place=f"store.root={running.bench.folder}/hangs")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=running.bench.server.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "exceeded timeout of 3" in done.stderr


def test_the_server_makes_runs_of_a_schedule(running: Deployed) -> None:
    """With SQLAlchemy 2.1 it accepts schedules and makes no run of them."""
    watch = running.deployment("land/watch")["id"]
    scheduled = {"deployments": {"id": {"any_": [watch]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    began = datetime.now(UTC)

    def ahead() -> list[datetime]:
        runs = [run for run in running.post("/flow_runs/filter", scheduled) if run["auto_scheduled"]]
        times = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
        return sorted(time for time in times if time > began)

    switch_schedule(running.bench, "land/watch", on=True)
    try:
        wait_for(ahead, 90, "no run was scheduled")
        assert ahead()[0] - began <= timedelta(minutes=5)
    finally:
        switch_schedule(running.bench, "land/watch", on=False)


def test_a_server_that_comes_back_counts_heartbeats_anew(running: Deployed, tmp_path: Path) -> None:
    """On a copy of its database: the count of a run that was silent for a day, for the server was away."""
    env, copy = running.bench.server.env, tmp_path / "prefect.db"
    with sqlite3.connect(Path(env["PREFECT_HOME"]) / "prefect.db") as live, sqlite3.connect(copy) as database:
        live.backup(database)
        (automation,) = database.execute("select id from automation where name = ?", ["dead runs are marked Crashed"])
        database.execute(
            "insert into automation_bucket (id, automation_id, trigger_id, bucketing_key, start, end, count)"
            " values ('1', ?, '2', '[]', '2026-01-01 00:00:00.000000', '2026-01-01 00:05:00.000000', 0)",
            automation,
        )
    command = [sys.executable, "-m", "deployments.grace"]
    place = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{copy}"}
    subprocess.run(command, env={**env, **place}, cwd=ROOT, check=True)
    with sqlite3.connect(copy) as database:
        ((end,),) = database.execute("select end from automation_bucket where id = '1'")
    left = datetime.fromisoformat(end).replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(minutes=4) < left < timedelta(minutes=5)


def test_runs_begin_in_the_folder_that_the_registration_names(running: Deployed) -> None:
    """Last of all: no worker has the project there."""
    done = running.bench.server.run("deployments.registration", "--folder", "/opt/gradelora")
    assert "registered deployment: finetune/demo" in done.stdout, done.stderr
    (step,) = running.deployment("finetune/demo")["pull_steps"]
    assert step["prefect.deployments.steps.set_working_directory"] == {"directory": "/opt/gradelora"}
