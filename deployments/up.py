"""`make up`: server, work pool, GPU limit, deployments, automations and worker on this machine.

Each step is skipped where it is done; a call that was cut off is called again.  What has died is
started again, and so is what runs but does not answer.
"""

import argparse
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from deployments import processes
from gradelora.errors import BadConfig, ChildFailed, GradeloraError
from gradelora.hardware import tool_path

HOST = "127.0.0.1"
PORT = 4200
ROOT = Path(".gradelora")
MACHINE, HOME, SHELL = ROOT / "machine", ROOT / "prefect", ROOT / "env"
SERVER, WORKER = "server", "worker"
START_S = 180.0
# What runs and gives no sign of life for so long hangs: a server that does not answer, a worker whose
# heartbeat, due every 30 s, has not come.
HANGS_S = 90.0
# The Hub's, the mirror's and the trackers' credentials are the worker's; a server has no use for them.
SECRETS = ("HF_", "HUGGING_FACE_", "AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "WANDB_", "MLFLOW_", "TRACKIO_")
# Prefect reads both; the second is the older name.
DATABASES = {"PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL"}


def up(port: int | None, arguments: Sequence[str]) -> None:
    """Bring up what is not up; `arguments` go to deployments.registration.  Raises GradeloraError.

    Without a port: that of a server that has died, where its worker and runs look for it, else PORT.
    """
    for folder in (ROOT, MACHINE, HOME):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    with held():
        url = _server(port)
        _register(url, arguments)
        _worker(url)
        SHELL.write_text(_shell(url), encoding="utf-8")
    print(f"UI: {url.removesuffix('/api')}\nIn your shell: . {SHELL}")


@contextlib.contextmanager
def held() -> Iterator[None]:
    """One `up` or `down` at a time; the kernel frees it with its holder."""
    with (MACHINE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(url: str) -> dict[str, str]:
    """What server, worker and runs have in common: a home of their own, and nothing is sent out."""
    return {
        **os.environ,
        "PATH": tool_path(),
        "PREFECT_HOME": str(HOME.absolute()),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Hundreds of looks at the data a day: what is older than 90 days goes.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # People are told of late runs: a worker that is busy for a moment is none of their business.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "600",
        # In memory, the default, a server that is started again ends every run that holds a slot, and
        # the slot of one that died meanwhile is lost for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _shell(url: str) -> str:
    """What a shell needs to find server and commands."""
    here = f"export PREFECT_API_URL={url}\nexport PREFECT_HOME={HOME.absolute()}\n"
    return f'{here}export PATH="{Path(sys.executable).parent}:$PATH"\n'


def _server(port: int | None) -> str:
    """Its API's address; started where it does not run, or does not answer."""
    recorded, running = processes.recorded(SERVER, MACHINE), processes.running(SERVER, MACHINE)
    processes.shorten(SERVER, MACHINE)
    if running is not None and _within(HANGS_S, lambda: healthy(running.url)):
        print(f"server: runs, pid {running.pid}")
        return running.url
    why = " (it did not answer)" if running else " (it had died)" if recorded else ""
    port = port or (urlsplit(recorded.url).port if recorded else None) or PORT
    if running:
        processes.stop(SERVER, MACHINE)
    _refuse_taken(port)
    url = f"http://{HOST}:{port}/api"
    env = {name: value for name, value in environment(url).items() if not name.startswith(SECRETS)}
    _forgive(env)
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    started = processes.start(SERVER, argv, folder=MACHINE, env=env, url=url)
    print(f"server: started, pid {started.pid}{why}")
    processes.wait_until(lambda: healthy(url), SERVER, MACHINE, START_S)
    return url


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it holds at once or within so long."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True


def _forgive(env: dict[str, str]) -> None:
    """Runs that went on while the server was away get time to say so, before they count as dead.

    Raises ChildFailed where its database cannot be read.
    """
    if (HOME / "prefect.db").exists() or not DATABASES.isdisjoint(env):
        done = subprocess.run(
            [sys.executable, "-m", "deployments.grace"], env=env, capture_output=True, text=True, check=False
        )
        print(done.stdout, end="")
        if done.returncode != 0:
            raise ChildFailed(
                f"the server's database cannot be read: {done.stderr.strip().splitlines()[-1]}; mend or move it "
                f"({HOME}/prefect.db, or {' or '.join(sorted(DATABASES))}), then call `make up` again"
            )


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BadConfig(
                f"{HOST}:{port} is taken by a program that `make up` did not start; "
                f"end it, or take another port: make up PORT={port + 1}"
            ) from error


def healthy(url: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _register(url: str, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "deployments.registration", *arguments]
    if subprocess.run(command, env=environment(url), check=False).returncode != 0:
        raise BadConfig("what the server must know is not registered (see above); mend it and call `make up` again")


def _worker(url: str) -> None:
    """Start it where it does not run, or where the server hears nothing of it."""
    name, why = socket.gethostname(), ""
    recorded, running = processes.recorded(WORKER, MACHINE), processes.running(WORKER, MACHINE)
    processes.shorten(WORKER, MACHINE)
    if running is not None and running.url == url:
        lately = datetime.now(UTC) - timedelta(seconds=HANGS_S)
        if _within(HANGS_S, lambda: _online(url, name, lately)):
            print(f"worker: runs, pid {running.pid}")
            return
        why = " (it gave no sign of life)"
        # Its runs go on without it.
        processes.kill(WORKER, MACHINE)
    elif recorded is not None and running is None:
        why = " (it had died)"
    processes.stop(WORKER, MACHINE)
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gradelora", "--type", "process"]
    since = datetime.now(UTC)
    started = processes.start(WORKER, [*argv, "--name", name], folder=MACHINE, env=environment(url), url=url)
    processes.wait_until(lambda: _online(url, name, since), WORKER, MACHINE, START_S)
    print(f"worker: started, pid {started.pid}{why}")


def _online(url: str, name: str, since: datetime) -> bool:
    """Whether the server has heard of this very worker; an earlier one of its name may still count as online."""
    try:
        answer = httpx.post(f"{url}/work_pools/gradelora/workers/filter", json={}, timeout=30, auth=_auth())
        workers = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return False
    return any(w["name"] == name and datetime.fromisoformat(w["last_heartbeat_time"]) > since for w in workers)


def _auth() -> httpx.BasicAuth | None:
    """For a server with PREFECT_SERVER_API_AUTH_STRING, as its own client sends it."""
    auth = os.environ.get("PREFECT_API_AUTH_STRING")
    return httpx.BasicAuth(*auth.split(":", 1)) if auth else None


def main(arguments: Sequence[str]) -> int:
    """`python -m deployments.up`; unknown arguments go on to the registration."""
    parser = argparse.ArgumentParser(prog="python -m deployments.up", description=__doc__)
    default = int(os.environ["GRADELORA_PORT"]) if "GRADELORA_PORT" in os.environ else None
    told = "of the server; default: GRADELORA_PORT, then that of a server that has died, then 4200"
    parser.add_argument("--port", type=int, default=default, help=told)
    known, others = parser.parse_known_args(arguments)
    try:
        up(known.port, others)
    except GradeloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
