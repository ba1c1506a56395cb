"""`python -m bench.look_at_ui --out FOLDER`: what an operator sees of a run in Prefect's UI, as pictures.

Starts a server of its own with all deployments and automations, runs the demo's flow twice (the
second time everything is Cached) and photographs with a headless Chromium: the run's graph, each
artifact, the automations, deployments and the GPU's slot.  Exit code 1 where a page does not show
what it must, 2 where Chromium is missing.  Somebody has to look at the pictures.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from bench.browser import Page, a_page
from bench.cluster import ROOT, MissingProgram, free_port, wait_until
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub

QUICK = ["train.max_steps=12", "train.warmup_steps=1", "evaluate.resamples=200", "merge.enabled=false"]
BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock
CustomWebhookNotificationBlock(name="graders", url="http://127.0.0.1:9/").save("graders", overwrite=True)
"""


class Server:
    """Prefect's server with one run's records, its files in a temporary folder."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder, port = folder, free_port()
        self.ui = f"http://127.0.0.1:{port}"
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "HF_ENDPOINT": hub,
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def run(self, *arguments: str) -> str:
        """`python ARGUMENTS`; its output."""
        done = subprocess.run([sys.executable, *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{arguments[:2]}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the API answers."""
        return httpx.post(f"{self.ui}/api{path}", json=body, timeout=60).raise_for_status().json()

    def finetune(self, changes: list[str]) -> str:
        """One run of the demo's flow here; its id."""
        places = [f"store.root={self.folder}/store", f"runtime.hub_cache={self.folder}/hub"]
        sets = [part for change in [*changes, *places] for part in ("--set", change)]
        self.run("-m", "flows.finetune", "--config", "deployments/demo.yaml", *sets)
        body = {"flows": {"name": {"any_": ["finetune"]}}, "sort": "START_TIME_DESC", "limit": 1}
        return str(self.post("/flow_runs/filter", body)[0]["id"])


def look(server: Server, page: Page, run: str, cached: str, out: Path) -> list[str]:
    """Photograph everything; the names of the pictures."""
    taken: list[str] = []

    def take(name: str, address: str, text: str, *clicks: str) -> None:
        page.open(f"{server.ui}{address}", text)
        for click in clicks:
            page.click(click)
        page.photograph(out / f"{len(taken):02}-{name}.png")
        taken.append(name)

    name = server.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})[0]["name"]
    take("run", f"/runs/flow-run/{run}", name)
    take("run-tasks", f"/runs/flow-run/{run}", name, "Task Runs")
    take("run-artifacts", f"/runs/flow-run/{run}", name, "Artifacts")
    take("run-cached", f"/runs/flow-run/{cached}", "Completed", "Task Runs")
    body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "KEY_ASC", "limit": 100}
    for artifact in server.post("/artifacts/filter", body):
        take(f"artifact-{artifact['key']}", f"/artifacts/artifact/{artifact['id']}", artifact["key"])
    take("artifacts", "/artifacts", "demo-agreement")
    take("automations", "/automations", "dead runs are marked Crashed")
    take("deployments", "/deployments", "h200-merge")
    take("gpu-slot", "/concurrency-limits", "gpu", "Global")
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.look_at_ui", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    parser.add_argument("--whole", action="store_true", help="train and merge as `make demo` does: minutes more")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gradelora-ui-"))
    repositories = ROOT / ".cache" / "tests" / "repositories"
    subprocess.run([sys.executable, "-m", "gradelora.sandbox.tiny_gpt_oss", str(repositories / REPO_ID)], check=True)
    with LoopbackHub(repositories) as hub:
        server = Server(folder, hub.url)
        try:
            wait_until(lambda: httpx.get(f"{server.ui}/api/health").is_success, "the server")
            server.run("-c", BLOCK)
            server.run("-m", "deployments.registration", "--notify", "custom-webhook/graders")
            changes = [] if arguments.whole else QUICK
            run, cached = server.finetune(changes), server.finetune(changes)
            with a_page(folder / "browser") as page:
                taken = look(server, page, run, cached, arguments.out)
            print(f"{len(taken)} pictures in {arguments.out}: {', '.join(taken)}")
            print(f"complaints of the pages' scripts: {page.complaints or 'none'}")
        except (MissingProgram, TimeoutError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2 if isinstance(error, MissingProgram) else 1
        finally:
            server.process.terminate()
            server.process.wait(30)
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
