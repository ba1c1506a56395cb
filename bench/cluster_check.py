"""`make cluster-check`: the deployments on PostgreSQL with Redis, 20 flow runs at once, servers killed meanwhile.

Everything is registered as on any server: deployments, automations, the trigger on new data.

At once: finetune/demo may for a while run 20 times.  Sixteen runs find everything cached, two
evaluate anew, two train from nothing in one store that they share.  All 20 are stopped inside
their flow by a lock; then the background services are killed (SIGKILL) and started again, one API
server after the other is restarted (SIGTERM; SIGKILL with --hard), and the lock is let go.

In turn: with its own limit of 1 again, land/watch sees new data, its event's trigger starts a
run, and four more are asked for at once.

Then: is every run Completed with the states and the tasks that it must have, is the adapter the
same everywhere, did those of the second part wait for each other?  Needs the Debian packages
postgresql and redis-server; exit code 1 where something is lost, 2 where a package is missing.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cluster import ROOT, Cluster, MissingProgram, wait_until
from bench.cluster_runs import DEMO, STAGES, TASKS, Runs
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub

POOL, CACHED, ANEW, FRESH, IN_TURN = "gradelora", 16, 2, 2, 5
AT_ONCE = CACHED + ANEW + FRESH
# A stage that two runs need anew at once is worked on once: one Completed, one Cached.
STAGES_CACHED = CACHED * len(STAGES) + (ANEW * len(STAGES) - 1) + len(STAGES)
QUICK = ["train.max_steps=4", "train.warmup_steps=1", "evaluate.resamples=200", "merge.enabled=false"]


class Place:
    """Where the runs have their data, stores and Hub."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        shutil.copytree(ROOT / "data" / "sample", folder / "data")

    def overrides(self, store: str = "store", *more: str) -> list[str]:
        """Settings of one run."""
        places = [
            f"data.files={self.folder}/data/*.json",
            f"store.root={self.folder}/{store}",
            f"runtime.hub_cache={self.folder}/hub",
        ]
        return [*QUICK, *places, *more]

    def prepare(self) -> str:
        """Do all the work once, without Prefect; the adapter's digest."""
        changes = [part for change in self.overrides() for part in ("--set", change)]
        command = [sys.executable, "-m", "gradelora.cli", "evaluate", "--config", "deployments/demo.yaml", *changes]
        subprocess.run(command, env=self.env, cwd=ROOT, check=True, capture_output=True)
        return self.adapter("store")

    def adapter(self, store: str) -> str:
        """Digest of the one adapter in a store."""
        (receipt,) = (self.folder / store / "train").glob("*/receipt.json")
        digest: str = json.loads(receipt.read_text())["digest"]
        return digest

    @contextlib.contextmanager
    def stopped_in(self, stage: str) -> Iterator[None]:
        """Every run, in either store, waits in this stage: its key is held as another run holds it."""
        (sealed,) = (path.parent for path in (self.folder / "store" / stage).glob("*/receipt.json"))
        with contextlib.ExitStack() as locks:
            for store in ("store", "fresh"):
                folder = self.folder / store / stage
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = locks.enter_context((folder / f".{sealed.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def check(folder: Path, workers: int, hard: bool) -> int:
    """Print what was found; 1 where something was lost.  Raises MissingProgram."""
    cluster = Cluster(folder)
    repositories = ROOT / ".cache" / "tests" / "repositories"
    subprocess.run([sys.executable, "-m", "gradelora.sandbox.tiny_gpt_oss", str(repositories / REPO_ID)], check=True)
    with LoopbackHub(repositories) as hub:
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
        env = {**cluster.env, "HF_ENDPOINT": hub.url, "TORCH_EXTENSIONS_DIR": extensions, "OMP_NUM_THREADS": "1"}
        place, runs = Place(folder, env), Runs(cluster)
        try:
            cluster.start_stores()
            expected = place.prepare()
            seconds = cluster.start_servers("api-0", "api-1", "services")
            print(f"API and services answered after {seconds:.1f} s", flush=True)
            print(cluster.run("deployments.registration"), flush=True)
            # It would look at the data of another configuration.
            runs.pause("land/watch")
            for number in range(workers):
                cluster.start_worker(f"worker-{number}", POOL, -(-AT_ONCE // workers), env)
            faults = [*_at_once(place, runs, hard), *_in_turn(place, runs)]
            found = {store: place.adapter(store) for store in ("store", "fresh")}
            print(f"adapter: {expected[:16]} wanted, {', '.join(f'{d[:16]} in {s}' for s, d in found.items())}")
            faults += [f"adapter in {store}: {d}, {expected} wanted" for store, d in found.items() if d != expected]
            _show(runs)
        finally:
            cluster.stop()
    for fault in faults:
        print(f"LOST: {fault}")
    return 1 if faults else 0


def _at_once(place: Place, runs: Runs, hard: bool) -> list[str]:
    """Twenty runs inside their flows, servers killed, and what was lost by it."""
    runs.change(DEMO, concurrency_limit=AT_ONCE)
    started, cluster = time.monotonic(), runs.cluster
    kinds = [place.overrides("fresh")] * FRESH + [place.overrides("store", "evaluate.resamples=300")] * ANEW
    with place.stopped_in("validate"):
        ids = [runs.start(DEMO, overrides=kind) for kind in kinds + [place.overrides()] * CACHED]
        seconds = wait_until(lambda: runs.states(ids)["RUNNING"] == AT_ONCE, f"{AT_ONCE} runs at once", 900)
        print(f"{AT_ONCE} runs are Running at once, {seconds:.0f} s after they were asked for", flush=True)
        restart = signal.SIGKILL if hard else signal.SIGTERM
        for how, name in ((signal.SIGKILL, "services"), (restart, "api-0"), (restart, "api-1")):
            cluster.end(how, name)
            down = cluster.start_servers(name)
            print(f"{how.name} to {name} with {dict(runs.states(ids))}; up again after {down:.1f} s", flush=True)
    wait_until(lambda: runs.ended(ids), f"the end of {AT_ONCE} runs", 1800)
    print(
        f"{AT_ONCE} runs ended {time.monotonic() - started:.0f} s after they were asked for: {dict(runs.states(ids))}"
    )
    faults = _faults(runs, ids)
    total, cached = AT_ONCE * len(TASKS), runs.cached(ids)
    print(f"task runs: {total} wanted, {STAGES_CACHED} of them Cached; {cached} Cached found", flush=True)
    return faults if cached == STAGES_CACHED else [*faults, f"{cached} tasks Cached, {STAGES_CACHED} wanted"]


def _in_turn(place: Place, runs: Runs) -> list[str]:
    """New data start a run by their trigger; it and those that are asked for meanwhile run one after the other."""
    runs.change(
        DEMO, concurrency_limit=1, parameters={"config": "deployments/demo.yaml", "overrides": place.overrides()}
    )
    before = {run["id"] for run in runs.of(DEMO)}
    look = runs.start("land/watch", config="deployments/demo.yaml", overrides=place.overrides(), settle_s=1)
    wait_until(lambda: runs.ended([look]), "the end of land/watch", 300)
    (landed,) = runs.read([look])
    asked = [runs.start(DEMO) for _ in range(IN_TURN - 1)]

    def ids() -> list[str]:
        return [run["id"] for run in runs.of(DEMO) if run["id"] not in before]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: len(ids()) == IN_TURN, "the run that new data start", 180)
    wait_until(lambda: runs.ended(ids()), f"the end of {IN_TURN} runs", 900)
    triggered = [run for run in runs.read(ids()) if (run["created_by"] or {}).get("type") == "AUTOMATION"]
    overlaps = runs.overlaps(ids())
    print(
        f"land/watch: {landed['state_name']}; its trigger started {len(triggered)} run; with {len(asked)} more "
        f"{dict(runs.states(ids()))}, {overlaps} of them before the one before had ended",
        flush=True,
    )
    faults = _faults(runs, ids())
    if (landed["state_name"], len(triggered), len(ids()), overlaps) != ("Landed", 1, IN_TURN, 0):
        faults.append("new data must start one run, and runs of one deployment must wait for each other")
    return faults


def _faults(runs: Runs, ids: Sequence[str]) -> list[str]:
    """Of all these runs; task states travel as events, and the last ones may still be under way."""

    def found() -> list[str]:
        return [fault for run in ids for fault in runs.faults(run)]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not found(), "every state", 90)
    return found()


def _show(runs: Runs) -> None:
    for table in ("flow_run", "flow_run_state", "task_run", "task_run_state", "events"):
        print(f"PostgreSQL {table}: {runs.cluster.rows(f'select count(*) from {table}')} rows")
    print(f"Redis: {runs.cluster.keys()} keys; events of the completions: {runs.completed_events()}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_check", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="they share the 20 runs, 0.3 GB of memory each")
    parser.add_argument("--hard", action="store_true", help="SIGKILL to the API servers, too, in place of SIGTERM")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    arguments = parser.parse_args()
    # An exception, so that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="gradelora-cluster-"))
    try:
        return check(folder, arguments.workers, arguments.hard)
    except MissingProgram as error:
        print(f"missing: {error}", file=sys.stderr)
        return 2
    finally:
        if arguments.keep:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
