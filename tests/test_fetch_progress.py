"""A download as Prefect shows it: lines in the log, a progress artifact that moves."""

import json
import re
import subprocess
import sys

import httpx
import pytest

from gradelora.config_file import load_config
from gradelora.sandbox.hub import Fault, LoopbackHub, Throttle
from tests.conftest import ROOT
from tests.hub_samples import BIG, MIB, write_big

pytestmark = pytest.mark.slow

FLOW = """
import sys
from prefect import flow
from gradelora.config import RunConfig
from gradelora.resolve import resolve
from tasks.fetch import fetch

run = RunConfig.model_validate_json(open(sys.argv[1]).read())

@flow
def bring():
    return fetch(run, resolve(run.base, runtime=run.runtime), part="everything").artifact.commit

print(bring())
"""


def test_a_download_shows_its_lines_and_a_progress_artifact(prefect_server, tmp_path):
    write_big(tmp_path / "hub", 24 * MIB)
    slow = Fault(Throttle(MIB / 2), on="cdn", times=None)
    with LoopbackHub(tmp_path / "hub", faults=[slow]) as hub:
        places = [f"store.root={tmp_path}/store", f"runtime.hub_cache={tmp_path}/cache", "runtime.fetch_engine=http"]
        run = load_config(
            ROOT / "deployments" / "demo.yaml", [*places, f"base.repo_id={BIG}", f"runtime.hub_endpoint={hub.url}"]
        )
        (tmp_path / "run.json").write_text(run.model_dump_json())
        command = [sys.executable, "-c", FLOW, str(tmp_path / "run.json")]
        done = subprocess.run(command, env=prefect_server.env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"MB of 25\.2 MB \(\d+ %\), .*/s, .* left, \d connections", done.stderr)
    # The server is other tests', too.
    query = {"artifacts": {"key": {"any_": ["demo-fetch-everything"]}}, "flows": {"name": {"any_": ["bring"]}}}
    artifacts = httpx.post(f"{prefect_server.url}/artifacts/filter", json=query).json()
    assert [(a["type"], json.loads(str(a["data"]))) for a in artifacts] == [("progress", 100.0)]
    assert "25.2 MB in" in artifacts[0]["description"]
    assert artifacts[0]["updated"] > artifacts[0]["created"]
