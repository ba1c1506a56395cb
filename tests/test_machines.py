"""A rented machine disappears in mid-training; another one with an empty disk ends with the same adapter."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import sha256_file
from tests.conftest import QUICK, ROOT
from tests.deployed import hold_training
from tests.network import BUCKET, S3, Network, hub_at, needs_namespaces, unplug

pytestmark = [pytest.mark.slow, needs_namespaces()]
# A checkpoint every third of eighteen steps.
TRAINING = [*QUICK, "train.max_steps=18", "train.save_every=0.16", "train.evaluate_every=1"]


class Place:
    """Where two machines, an S3 server and a Hub are, and how a machine trains there."""

    def __init__(self, network: Network, s3: S3, endpoint: str, folder: Path) -> None:
        self.network, self.s3, self.endpoint, self.folder = network, s3, endpoint, folder

    def command(self, machine: str, *more: str) -> tuple[str, ...]:
        disk = self.folder / machine
        places = [f"data.files={self.folder}/data/*.json", f"store.root={disk}/store", f"runtime.hub_cache={disk}/hub"]
        changes = [part for override in (*TRAINING, *places, *more) for part in ("--set", override)]
        return ("gradelora.cli", "train", "--config", "deployments/demo.yaml", "--json", *changes)

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.s3.env,
            "HF_ENDPOINT": self.endpoint,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
        }


@pytest.fixture(scope="module")
def place(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("machines")
    shutil.copytree(ROOT / "data" / "sample", folder / "data")
    with Network(("a", "b")) as network, hub_at(network.address, repositories) as hub:
        s3 = S3(network.address)
        yield Place(network, s3, hub.url, folder)
        s3.stop()


def result(log: Path) -> Any:
    """The adapter's facts, the last line that a machine printed."""
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    assert lines, text[-4000:]
    return json.loads(lines[-1])


def weights(facts: Any) -> str:
    return sha256_file(Path(facts["path"]) / "adapter_model.safetensors")


def test_a_machine_lost_in_mid_training_costs_nothing_but_the_steps_since_its_last_checkpoint(place: Place) -> None:
    undisturbed = subprocess.run(
        [sys.executable, "-m", *place.command("undisturbed")],
        env=place.env, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = json.loads(undisturbed.stdout.splitlines()[-1])

    mirror = f"store.mirror=s3://{BUCKET}/team"
    log = place.folder / "a.log"
    a = place.network.start("a", *place.command("a", mirror), env=place.env, log=log)
    try:
        hold_training(place.folder / "a", log.read_text)
        until = time.monotonic() + 240
        while not [name for name in place.s3.names() if name.endswith("/manifest.json")]:
            assert a.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, "no checkpoint was mirrored"
            time.sleep(0.1)
    finally:
        unplug(a)
    assert not [name for name in place.s3.names() if name.startswith("team/artifacts/train/")], (
        "it was not in the middle"
    )
    shutil.rmtree(place.folder / "a")

    log = place.folder / "b.log"
    b = place.network.start("b", *place.command("b", mirror), env=place.env, log=log)
    try:
        assert b.wait(300) == 0, log.read_text()[-4000:]
    finally:
        unplug(b)
    facts, said = result(log), log.read_text()
    assert re.search(r"train goes on from the checkpoint of step \d+, brought from s3://", said), said[-4000:]
    assert re.search(r"^validate +cached", said, re.M), said[-4000:]
    assert facts["digest"] == expected["digest"]
    assert weights(facts) == weights(expected)
    names = place.s3.names()
    assert [name for name in names if re.match(r"team/artifacts/train/.*/receipt\.json", name)]
    assert not [name for name in names if name.startswith("team/checkpoints/")], "the adapter supersedes them"
    assert not [name for name in names if "fetch" in name], "the base snapshot comes from the Hub"
