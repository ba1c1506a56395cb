"""Several nodes: two network namespaces with a cable between them, a process group in each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import Runtime, TrainConfig
from gradelora.config_file import build_config
from gradelora.errors import BadConfig
from gradelora.nodes import Place, interface, is_here, number_of_nodes, processes_on_each
from gradelora.store import Store, key_of
from gradelora.train import train
from gradelora.train.launching import command, environment
from tests.network import ip
from tests.node import Request
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import CONFIG, changed

ROOT = Path(__file__).parents[1]
PREFIX = "gradelora-"
ADDRESSES = ("10.79.31.1", "10.79.31.2")


def runtime(**values: Any) -> Runtime:
    return Runtime.model_validate({"threads": 1, "nodes": 2, "rendezvous": ADDRESSES[0]} | values)


# Where this machine stands among the nodes.


def test_one_machine_needs_no_settings() -> None:
    assert Place.of(Runtime(threads=1)) == Place()


def test_the_hostfile_tells_each_machine_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# two rented machines\nnode-a slots=8\nnode-b slots=8\n\n")
    monkeypatch.setattr("gradelora.nodes.is_here", lambda name: name == "node-b")
    place = Place.of(Runtime(hostfile=hostfile))
    assert (place.nodes, place.rank, place.host, place.port, place.peer) == (2, 1, "node-a", 29500, "node-a")
    assert place.local_processes(changed(processes=16)) == 8


@pytest.mark.parametrize("lines", ["", "a slots=8\nb slots=4\n", "a slots=8\na slots=8\n"])
def test_a_hostfile_that_does_not_say_what_to_do_is_refused(tmp_path: Path, lines: str) -> None:
    (tmp_path / "hosts").write_text(lines)
    with pytest.raises(BadConfig, match="NAME slots=NUMBER"):
        Place.of(Runtime(hostfile=tmp_path / "hosts"))


def test_a_machine_that_is_in_no_line_is_refused_with_the_setting_to_use(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("198.51.100.1\n198.51.100.2\n")
    with pytest.raises(BadConfig, match=r"0 of the machines.*runtime\.node_rank"):
        Place.of(Runtime(hostfile=tmp_path / "hosts"))


@pytest.mark.parametrize("variable", ["SLURM_NODEID", "JOB_COMPLETION_INDEX"])
def test_slurm_and_kubernetes_tell_the_rank(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    place = Place.of(Runtime(nodes=2, rendezvous="node-a:4000"))
    assert (place.rank, place.host, place.port) == (1, "node-a", 4000)


def test_nodes_without_a_meeting_point_or_a_rank_are_refused() -> None:
    with pytest.raises(BadConfig, match=r"runtime\.rendezvous"):
        Place.of(Runtime(nodes=2, node_rank=0))
    with pytest.raises(BadConfig, match=r"runtime\.node_rank"):
        Place.of(Runtime(nodes=2, rendezvous="node-a"))
    with pytest.raises(BadConfig, match="0 to 1"):
        Place.of(Runtime(nodes=2, node_rank=2, rendezvous="node-a"))


def test_ranks_that_do_not_spread_evenly_are_refused() -> None:
    place = Place(nodes=2, rank=0, host="a")
    assert place.local_processes(changed(processes=4)) == 2
    assert processes_on_each(changed(processes=4), number_of_nodes(Runtime(nodes=2))) == 2
    with pytest.raises(BadConfig, match="multiple of 2"):
        place.local_processes(changed(processes=3))
    with pytest.raises(BadConfig, match="one process"):
        place.local_processes(changed(processes=1, parallel="layers"))


def test_how_nodes_are_arranged_enters_no_key(tmp_path: Path) -> None:
    """train.processes counts the ranks of all nodes, so the key is that of one machine with as many."""
    assert not {"nodes", "node_rank", "rendezvous", "hostfile"} & set(TrainConfig.model_fields)
    (tmp_path / "model").mkdir()
    inputs = (snapshot_of(tmp_path / "model"), save_encoded(tmp_path / "data", questions=1, answers=1))
    assert key_of(train, CONFIG, inputs) != key_of(train, changed(processes=4), inputs)


def test_both_launchers_are_told_where_the_nodes_meet(tmp_path: Path) -> None:
    place = Place(nodes=2, rank=1, host="node-a", port=4000)
    torchrun = command(changed(processes=4), tmp_path / "job.1.json", place, 30)
    for pair in (["--nproc_per_node", "2"], ["--nnodes", "2"], ["--node_rank", "1"], ["--master_addr", "node-a"]):
        assert torchrun[torchrun.index(pair[0]) + 1] == pair[1]
    assert "timeout=30" in torchrun
    assert "--standalone" not in torchrun
    deepspeed = command(changed(processes=4, launcher="deepspeed"), tmp_path / "job.1.json", place)
    assert "--no_ssh" in deepspeed
    hostfile = Path(deepspeed[deepspeed.index("--hostfile") + 1])
    assert hostfile.read_text() == "node-0 slots=2\nnode-1 slots=2\n"


def test_the_interface_is_the_one_that_leads_to_the_other_nodes() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("198.51.100.1")
    assert interface(Place(nodes=2, host="127.0.0.1")) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no way out, so no interface leads anywhere")
    name = interface(Place(nodes=2, host="198.51.100.1"))
    assert name in [n for _, n in socket.if_nameindex()]
    env = environment(changed(processes=2), runtime(node_rank=1), Place(nodes=2, rank=1, host="198.51.100.1"))
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == (name, f"={name}")


def test_the_flow_is_refused_on_another_node_than_the_first(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    data = save_encoded(tmp_path / "data", questions=1, answers=1)
    with pytest.raises(BadConfig, match="run `gradelora train` here"):
        train(CONFIG, snapshot_of(tmp_path / "model"), data, out=tmp_path / "out", runtime=runtime(node_rank=1))


# Two nodes.


@dataclass(frozen=True)
class Cluster:
    """Two namespaces, one for each node, and the cable's ends."""

    names: tuple[str, str]

    def start(self, request: Path, rank: int, *wrapped: str) -> "subprocess.Popen[str]":
        """`python -m tests.node` on one node."""
        log = request.with_name(f"node{rank}.log").open("w")
        node = [sys.executable, "-m", "tests.node", str(request), str(rank)]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[rank], *wrapped, *node],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, request: Path, timeout_s: float = 120) -> list[str]:
        """Both nodes to their end; the last line that each printed."""
        nodes = [self.start(request, rank) for rank in (0, 1)]
        return self.wait(request, nodes, timeout_s)

    def wait(self, request: Path, nodes: list["subprocess.Popen[str]"], timeout_s: float) -> list[str]:
        until = time.monotonic() + timeout_s
        try:
            for node in nodes:
                node.wait(max(0.1, until - time.monotonic()))
        finally:
            for node in nodes:
                node.kill()
        return [(request.with_name(f"node{rank}.log").read_text().splitlines() or [""])[-1] for rank in (0, 1)]

    def cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", "cable", state)


def remove(name: str) -> None:
    """End what runs in a namespace, then the namespace with its end of the cable."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()
    for pid in map(int, pids):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def remove_left_over() -> None:
    """Namespaces whose test process was killed before it could remove them."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[0] for line in listed.splitlines() if line.startswith(PREFIX)):
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            remove(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("network namespaces need root and the ip command (iproute2)")
    remove_left_over()
    names = (f"{PREFIX}{os.getpid()}-a", f"{PREFIX}{os.getpid()}-b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield Cluster(names)
    finally:
        for name in names:
            remove(name)


@pytest.fixture(scope="module")
def one_node(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """The same two ranks on one machine."""
    return train(CONFIG, snapshot, data, out=tmp_path_factory.mktemp("one"), runtime=Runtime(threads=1))


def request_of(folder: Path, config: TrainConfig, snapshot: ModelSnapshot, data: EncodedDataset) -> Path:
    run = build_config(
        {
            "name": "nodes",
            "base": {"repo_id": "tiny/gpt-oss"},
            "data": {"files": ["none"]},
            "encode": {"layout": "harmony"},
            "train": config.model_dump(mode="json"),
            "store": {"root": str(folder / "store")},
            "runtime": runtime(collective_timeout_s=10, node_timeout_s=60).model_dump(mode="json"),
        }
    )
    path = folder / "request.json"
    path.write_text(Request(run=run, snapshot=snapshot, data=data).model_dump_json())
    return path


def sealed(folder: Path) -> Path:
    (found,) = Store(folder / "store").folders()
    return found


@pytest.mark.slow
def test_two_nodes_train_the_adapter_of_one(
    cluster: Cluster, one_node: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    """Dequantised here, packed on the one node: losses and bytes do not depend on either."""
    last = cluster.run(request_of(tmp_path, changed(weights="bf16"), snapshot, data))
    assert last == [f"digest {one_node.digest}"] * 2
    losses = [json.loads((folder / "history.json").read_text()) for folder in (sealed(tmp_path), one_node.path)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_node_that_is_lost_ends_the_others_and_the_next_run_goes_on(
    cluster: Cluster, one_node: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    request = request_of(tmp_path, CONFIG, snapshot, data)
    nodes = [cluster.start(request, rank) for rank in (0, 1)]

    def steps() -> int:
        found = list((tmp_path / "store").glob("train/.*.building/aside/progress.jsonl"))
        return len(found[0].read_text().splitlines()) if found else 0

    until = time.monotonic() + 90
    while steps() < 8 and time.monotonic() < until:
        time.sleep(0.02)
    cluster.cable("down")
    lost = time.monotonic()
    try:
        assert nodes[0].wait(60) == 1, request.with_name("node0.log").read_text()[-2000:]
        # gloo's timeout and the launcher's time to end its ranks.
        assert time.monotonic() - lost < 40
        assert "RankLost" in request.with_name("node0.log").read_text()
    finally:
        cluster.cable("up")
        for node in nodes:
            node.kill()
    assert cluster.run(request) == [f"digest {one_node.digest}"] * 2
    assert "resuming from step-" in request.with_name("node0.log").read_text()


@pytest.mark.slow
def test_a_store_that_the_nodes_do_not_share_is_refused(
    cluster: Cluster, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    request = request_of(tmp_path, CONFIG, snapshot, data)
    (tmp_path / "store").mkdir()
    own = f'mount -t tmpfs none {tmp_path}/store && exec "$@"'
    nodes = [cluster.start(request, 0), cluster.start(request, 1, "sh", "-c", own, "sh")]
    cluster.wait(request, nodes, 90)
    for rank in (0, 1):
        said = request.with_name(f"node{rank}.log").read_text()
        assert "BadConfig: rank 1 on" in said
        assert "store.root must lie on a file system that all nodes share" in said
