"""Machines for tests: network namespaces on a bridge, an S3 server and a Hub that they reach by its address."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gradelora.sandbox.hub import LoopbackHub
from gradelora.sandbox.hub import server as hub_server
from tests.conftest import ROOT

BUCKET = "gradelora"


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


class Network:
    """A bridge on this host, `address`, with a namespace for each machine: its own interfaces and ports."""

    def __init__(self, names: tuple[str, ...]) -> None:
        number = os.getpid() % 250 + 1
        self._bridge, self._prefix = f"glb{number}", f"10.213.{number}"
        self._spaces = {name: f"gl{number}{name}" for name in names}
        self.address = f"{self._prefix}.1"

    def __enter__(self) -> "Network":
        self._take_down()
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for place, space in enumerate(self._spaces.values(), 2):
            ip("netns", "add", space)
            ip("link", "add", f"v{space}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", f"v{space}", "master", self._bridge, "up")
            ip("-n", space, "addr", "add", f"{self._prefix}.{place}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._take_down()

    def _take_down(self) -> None:
        for space in self._spaces.values():
            ip("netns", "del", space, check=False)
        ip("link", "del", self._bridge, check=False)

    def start(self, name: str, *command: str, env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        """`python -m COMMAND` on a machine, in a process namespace: killing it takes all it has started along."""
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv = ["ip", "netns", "exec", self._spaces[name], *apart, sys.executable, "-m", *command]
        with log.open("ab") as sink:
            return subprocess.Popen(argv, env=dict(env), cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)


def unplug(machine: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to everything on a machine at once: the kernel ends a process namespace with its first process."""
    machine.send_signal(signal.SIGKILL)
    machine.wait(20)


class S3:
    """moto's S3 server, and what a client needs in its environment to reach it."""

    def __init__(self, host: str) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
        self._server.start()
        _, port = self._server.get_host_and_port()
        self.env = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-mirror",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.client().create_bucket(Bucket=BUCKET)

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id="a-key",
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def names(self) -> list[str]:
        """Every object's name."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def stop(self) -> None:
        self._server.stop()


def needs_namespaces() -> pytest.MarkDecorator:
    allowed = os.geteuid() == 0 and shutil.which("ip") is not None
    if allowed:
        probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
        allowed = probe.returncode == 0
    return pytest.mark.skipif(not allowed, reason="needs root, iproute2 and network namespaces")


@contextlib.contextmanager
def hub_at(host: str, repositories: Path, **settings: Any) -> Iterator[LoopbackHub]:
    """A loopback Hub that other machines reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_server, "HOST", host)
        with LoopbackHub(repositories, **settings) as hub:
            yield hub
