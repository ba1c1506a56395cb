"""`python -m deployments.registration`: all that a server must know, wherever it runs (PREFECT_API_URL).

Work pool, GPU limit, deployments and automations; a second call changes nothing.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate, WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from deployments import automations
from gradelora.artifacts import canonical_json, sha256_file, sha256_text
from gradelora.errors import ChildFailed, GradeloraError
from tasks.stage import ensure_gpu_limit

POOL = "gradelora"
NOTIFY = "GRADELORA_NOTIFY"
# Which prefect.yaml and flows the server was told of: kept there, for it is a fact about the server.
STAMP = "gradelora_registered"
DECLARED = Path("prefect.yaml")


def register(notify: str | None, folder: Path) -> list[str]:
    """Make the server know everything; what was done, empty where nothing had to be.

    `notify` is a notification block such as slack-webhook/graders, `folder` where the workers have this
    project.  Raises BadConfig, ChildFailed.
    """
    done = []
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            done.append(f"created work pool: {POOL}")
        ensure_gpu_limit()
        done += _deployments(client, folder)
        wanted = automations.recovery()
        if notify:
            wanted += automations.alerts(automations.notification_block(client, notify))
        return done + automations.synchronise(client, wanted)


def _deployments(client: SyncPrefectClient, folder: Path) -> list[str]:
    """`prefect deploy --all`, where prefect.yaml, a flow or the folder is another than last time."""
    stamp = _stamp(folder)
    known = client.read_variable_by_name(STAMP)
    if known is not None and known.value == stamp and not _missing(client):
        return []
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    # prefect.yaml takes $PWD for the folder of the runs; a shell sets it, `make -C` and cron do not.
    env = {**os.environ, "PWD": str(folder)}
    deployed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if deployed.returncode != 0 or _missing(client):
        raise ChildFailed(f"prefect deploy --all failed; mend prefect.yaml\n{deployed.stdout}{deployed.stderr}")
    if known is None:
        client.create_variable(VariableCreate(name=STAMP, value=stamp))
    else:
        client.update_variable(VariableUpdate(name=STAMP, value=stamp))
    return [f"registered deployment: {name}" for name in declared()]


def declared() -> list[str]:
    """The deployments of prefect.yaml as flow/name."""
    deployments = yaml.safe_load(DECLARED.read_text(encoding="utf-8"))["deployments"]
    return [f"{d['entrypoint'].rpartition(':')[2]}/{d['name']}" for d in deployments]


def _missing(client: SyncPrefectClient) -> list[str]:
    missing = []
    for name in declared():
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            missing.append(name)
    return missing


def _stamp(folder: Path) -> str:
    """sha256 over what a deployment is made of: prefect.yaml, the flows' parameters and texts, their folder."""
    files = [DECLARED, *sorted(Path("flows").glob("*.py"))]
    return sha256_text(canonical_json([str(folder), *(sha256_file(f) for f in files)]))


def main(arguments: Sequence[str]) -> int:
    """Register and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m deployments.registration", description=__doc__)
    help_notify = f"a notification block, e.g. slack-webhook/graders; default: {NOTIFY}"
    parser.add_argument("--notify", default=os.environ.get(NOTIFY), metavar="TYPE/NAME", help=help_notify)
    help_folder = "where the workers have this project, e.g. /opt/gradelora in an image; default: this folder"
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help=help_folder)
    given = parser.parse_args(arguments)
    try:
        done = register(given.notify, given.folder)
    except GradeloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except httpx.TransportError as error:
        print(f"{os.environ.get('PREFECT_API_URL')}: the server does not answer ({error})", file=sys.stderr)
        return 1
    print("\n".join(done) if done else "registered before; nothing changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
