"""Several machines that train together: how many, which of them this is, where they meet.

Every machine runs the same command.  Its place comes from `runtime.node_rank`, from the line of
`runtime.hostfile` that names it, or from Slurm or a Kubernetes indexed job.  None of this is in
any key: two nodes of one GPU are the same run as one node of two.
"""

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Self

from gradelora.artifacts import Frozen
from gradelora.config import Runtime, TrainConfig
from gradelora.errors import BadConfig

PORT = 29500
# Set by Slurm for every task, and by Kubernetes for every pod of an indexed job.
RANK_VARIABLES = ("SLURM_NODEID", "JOB_COMPLETION_INDEX")
SIOCGIFADDR = 0x8915


class Place(Frozen):
    """This machine among `nodes`; `host`:`port` is where node 0 listens, `peer` another node's name if known."""

    nodes: int = 1
    rank: int = 0
    host: str = "localhost"
    port: int = PORT
    peer: str | None = None

    def local_processes(self, config: TrainConfig) -> int:
        """Ranks on this machine.  Raises BadConfig where the ranks cannot be spread evenly."""
        return processes_on_each(config, self.nodes)

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """The place that settings, hostfile and environment give this machine.  Raises BadConfig."""
        hosts = read_hostfile(runtime.hostfile) if runtime.hostfile else ()
        nodes = len(hosts) or runtime.nodes
        if nodes == 1:
            return cls()
        rank = _rank(runtime, hosts)
        if not 0 <= rank < nodes:
            raise BadConfig(f"node rank {rank} of {nodes} nodes; runtime.node_rank counts from 0 to {nodes - 1}")
        meeting = runtime.rendezvous or (hosts[0] if hosts else None)
        if meeting is None:
            raise BadConfig(
                f"runtime.nodes={nodes} needs runtime.rendezvous, the address of node 0, or runtime.hostfile"
            )
        host, _, port = meeting.partition(":")
        peer = next((other for number, other in enumerate(hosts) if number != rank), None)
        return cls(nodes=nodes, rank=rank, host=host, port=int(port or PORT), peer=peer)


def number_of_nodes(runtime: Runtime) -> int:
    """How many machines train together; it can be told on any machine.  Raises BadConfig."""
    return len(read_hostfile(runtime.hostfile)) if runtime.hostfile else runtime.nodes


def processes_on_each(config: TrainConfig, nodes: int) -> int:
    """Ranks on each of the nodes.  Raises BadConfig where they cannot be spread evenly."""
    each, left = divmod(config.processes, nodes)
    if left or (config.parallel == "layers" and nodes > 1):
        why = "parallel=layers is one process" if config.parallel == "layers" else "not the same number on each"
        raise BadConfig(
            f"train.processes={config.processes} on {nodes} nodes: {why}; "
            f"set train.processes to a multiple of {nodes}, one a GPU, and train.parallel=zero2 or zero3"
        )
    return each


def read_hostfile(path: Path) -> tuple[str, ...]:
    """Names of the machines, node 0 first: DeepSpeed's and MPI's format, `NAME slots=NUMBER` a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadConfig(f"runtime.hostfile={path}: {error.strerror}") from error
    words = [text.split() for line in lines if (text := line.partition("#")[0].strip())]
    slots = {word for line in words for word in line[1:]}
    names = tuple(line[0] for line in words)
    if not names or len(slots) > 1 or len(set(names)) < len(names):
        raise BadConfig(
            f"runtime.hostfile={path}: {len(names)} machines, slots {sorted(slots)}; "
            "it needs a line `NAME slots=NUMBER` for each machine, each once, all with the same number"
        )
    return names


def _rank(runtime: Runtime, hosts: tuple[str, ...]) -> int:
    if runtime.node_rank is not None:
        return runtime.node_rank
    mine = [number for number, name in enumerate(hosts) if is_here(name)]
    if len(mine) == 1:
        return mine[0]
    if not hosts:
        for name in RANK_VARIABLES:
            if os.environ.get(name, "").isdigit():
                return int(os.environ[name])
    named = f"{len(mine)} of the machines in {runtime.hostfile} are this one" if hosts else "nothing tells its rank"
    raise BadConfig(f"{socket.gethostname()}: {named}; set runtime.node_rank, 0 on the machine of runtime.rendezvous")


def is_here(name: str) -> bool:
    """Whether a name or an address means this machine: only then can it be bound to."""
    if name in (socket.gethostname(), socket.getfqdn()):
        return True
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((name, 0))
    except OSError:
        return False
    return True


def interface(place: Place) -> str | None:
    """The network interface that leads to the other nodes; None where it cannot be told.

    gloo else takes the one that the host's own name resolves to, which is often the loopback.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Nothing is sent: connecting a datagram socket only chooses the route.
            probe.connect((place.peer or place.host, place.port))
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == address:
                    return name
    except OSError as error:
        raise BadConfig(f"{place.peer or place.host}: cannot be reached ({error}); see runtime.rendezvous") from error
    return None


def _address_of(probe: socket.socket, name: str) -> str | None:
    """The interface's IPv4 address (netdevice(7))."""
    try:
        answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])
