"""What a team relies on that leaves it running: new data, dead processes, refusals, alerts; on a real server."""

import http.server
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EvalReport
from gradelora.champion import champion_of, promote
from gradelora.landing import Seen
from gradelora.store import read_receipt
from tests.conftest import ROOT, Bench, wait_for
from tests.deployed import Deployed, adapter_digest, deployed, kill_engine, processes, switch_watch

pytestmark = pytest.mark.slow
FILES = 10


@pytest.fixture(scope="module")
def running(bench: Bench) -> Iterator[Deployed]:
    with deployed(bench) as running:
        running.set_parameters("finetune/demo", {"overrides": bench.overrides()})
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
        run = running.run()
    finally:
        running.post("/v2/concurrency_limits/decrement", slots)
    assert run["state_type"] == "COMPLETED", running.log
    states = running.task_states(run["id"])
    cached = {name for name, state in states.items() if state == "Cached"}
    assert cached >= {"fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate"}
    kinds = ("plan", "validation", "loss", "agreement", "stages", "report", "base-model")
    assert {f"demo-{kind}" for kind in kinds} <= set(running.artifacts(run["id"]))


def crown(running: Deployed) -> str:
    """Make the adapter at hand champion, as a gate that is content would; its digest."""
    root = running.bench.folder / "store"
    found: dict[str, Any] = {}
    for stage, kind in (("train", Adapter), ("evaluate", EvalReport)):
        (folder,) = [p for p in (root / stage).iterdir() if not p.name.startswith(".")]
        found[stage] = kind.model_validate({**read_receipt(folder).artifact, "path": folder})
    promote(root, "demo", adapter=found["train"], report=found["evaluate"], data_digest="x", reason="for the test")
    digest: str = found["train"].digest
    return digest


def test_bad_data_end_the_run_with_a_report_and_keep_the_champion(running: Deployed, landed: Any) -> None:
    champion, bad = crown(running), running.bench.folder / "data" / "bad.json"
    # The trigger's window, over at once.
    state = running.bench.folder / "store" / "landing" / "demo.json"
    seen = Seen.model_validate_json(state.read_text())
    state.write_text(seen.model_copy(update={"accepted": 0.0}).model_dump_json())
    before = len(finetunes(running))
    bad.write_text('[{"record_id": ')
    try:
        assert look(running)[0] == "Landed"
        wait_for(lambda: len(finetunes(running)) > before, 90, "no run was started")
        run = running.ended(finetunes(running)[0]["id"])
        assert run["state_type"] == "FAILED"
        assert "bad.json" in run["state"]["message"]
        report = running.artifacts(run["id"])["demo-validation"]
        assert "the run is blocked" in report["description"]
        assert "bad.json" in json.dumps(report["data"])
        now = champion_of(running.bench.folder / "store", "demo")
        assert now is not None
        assert now.adapter.digest == champion
        # The same bad files do not start a run again and again.
        assert look(running)[0] == "NothingNew"
    finally:
        bad.unlink()


STAGES = ("fetch", "validate", "encode", "train", "evaluate")


def test_an_engine_killed_in_every_stage_ends_with_the_undisturbed_adapter(running: Deployed, landed: Any) -> None:
    """Once it goes on by resume/crashed, then by `prefect flow-run retry`."""
    folder = running.bench.folder
    undisturbed = adapter_digest(folder / "store")
    run_id = running.start(f"store.root={folder}/again", f"runtime.hub_cache={folder}/again-hub")
    for kills, stage in enumerate(STAGES, start=1):
        kill_in(running, folder / "again", stage)
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
    assert running.read(run_id)["run_count"] == len(STAGES) + 1
    assert adapter_digest(folder / "again") == undisturbed
    (sealed,) = [p for p in (folder / "again" / "train").iterdir() if not p.name.startswith(".")]
    assert "resuming from step-" in (sealed / "aside" / "ranks.log").read_text()
    assert not processes(f"{folder}/again")


def kill_in(running: Deployed, store: Path, stage: str) -> None:
    """SIGKILL the engine as soon as it runs `stage`; train not before a checkpoint is sealed."""
    deadline = time.monotonic() + 200
    while stage == "train" and not list(store.glob("train/.*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline, f"no checkpoint\n{running.log}"
        time.sleep(0.02)
    while not kill_engine(store, stage):
        assert time.monotonic() < deadline, f"{stage} was never seen\n{running.log}"
        time.sleep(0.02)


def test_two_runs_of_one_configuration_at_once_train_once(running: Deployed, landed: Any) -> None:
    bench = running.bench
    changes = [part for change in bench.overrides("train.learning_rate=1e-3") for part in ("--set", change)]
    command = [sys.executable, "-m", "flows.finetune", "--config", "deployments/demo.yaml", "--json", *changes]
    both = [
        subprocess.Popen(command, env=bench.server.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    outcomes = [json.loads(process.communicate(timeout=400)[0].splitlines()[-1]) for process in both]
    trained = [s["cached"] for outcome in outcomes for s in outcome["stages"] if s["stage"] == "train"]
    assert sorted(trained) == [False, True]


class Receiver(http.server.BaseHTTPRequestHandler):
    """A webhook on loopback that keeps what it is sent."""

    received: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
text = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="graders", url=sys.argv[1], json_data=text).save("graders", overwrite=True)
"""
SEND = """
from tasks.events import BUDGET_REACHED, PROMOTED, REFUSED, send
for event in (PROMOTED, REFUSED, BUDGET_REACHED):
    send(event, "demo", {"reason": f"because of {event}"})
"""


def test_people_are_told_through_a_notification_block(running: Deployed) -> None:
    server = running.bench.server
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    try:
        block = [sys.executable, "-c", BLOCK, f"http://127.0.0.1:{hook.server_port}/"]
        subprocess.run(block, env=server.env, cwd=ROOT, check=True)
        absent = server.run("deployments.registration", "--notify", "slack-webhook/absent")
        assert absent.returncode == 2
        assert "custom-webhook/graders" in absent.stderr
        done = server.run("deployments.registration", "--notify", "custom-webhook/graders")
        assert "created automation: tell of failed runs" in done.stdout, done.stderr
        again = server.run("deployments.registration", "--notify", "custom-webhook/graders")
        assert "nothing changed" in again.stdout
        # The server's triggers learn of a new automation within moments.
        time.sleep(5)
        subprocess.run([sys.executable, "-c", SEND], env=server.env, cwd=ROOT, check=True)
        failed = running.run("base.revision=nowhere")
        assert failed["state_type"] == "FAILED"
        wait_for(lambda: len(Receiver.received) >= 4, 60, f"{Receiver.received}")
    finally:
        hook.shutdown()
    told = {m["subject"]: m["body"] for m in Receiver.received}
    assert told["gradelora: adapter promoted (demo)"] == "because of gradelora.adapter.promoted"
    assert "gradelora: adapter refused (demo)" in told
    assert "gradelora: budget reached (demo)" in told
    assert "nowhere" in told["gradelora: Failed"]


def test_the_server_makes_runs_of_a_schedule(running: Deployed) -> None:
    """With SQLAlchemy 2.1 it accepts schedules and makes no run of them."""
    watch = running.deployment("land/watch")["id"]
    scheduled = {"deployments": {"id": {"any_": [watch]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    began = datetime.now(UTC)

    def ahead() -> list[datetime]:
        runs = [run for run in running.post("/flow_runs/filter", scheduled) if run["auto_scheduled"]]
        times = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
        return sorted(time for time in times if time > began)

    switch_watch(running.bench, on=True)
    try:
        wait_for(ahead, 90, "no run was scheduled")
        assert ahead()[0] - began <= timedelta(minutes=5)
    finally:
        switch_watch(running.bench, on=False)


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
