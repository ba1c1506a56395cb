"""Before several nodes train together: is it the same run, and do all see the same store?"""

import secrets
import socket
import time
from pathlib import Path

import torch.distributed as dist

from gradelora.artifacts import ASIDE
from gradelora.errors import BadConfig
from gradelora.train.job import Job


def meet(job: Job) -> None:
    """Raise BadConfig on every rank unless all have this job and see a file that rank 0 just wrote.

    A checkpoint is sealed by rank 0 with what all ranks wrote: in folders that only look alike it
    would lack the other nodes' optimizer and generator states.
    """
    rank = dist.get_rank()
    told: list[tuple[str, str] | None] = [None]
    probe = job.out / ASIDE / f"meeting-{secrets.token_hex(8)}"
    if rank == 0:
        probe.write_text("seen by all nodes, or the store is not shared\n")
        told = [(probe.name, job.identity)]
    dist.broadcast_object_list(told, src=0)
    assert told[0] is not None
    name, identity = told[0]
    mine = (socket.gethostname(), job.identity == identity, _appears(job.out / ASIDE / name, job.patience_s))
    found: list[tuple[str, bool, bool]] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if rank == 0:
        probe.unlink()
    others = [f"rank {n} on {host}" for n, (host, same, _) in enumerate(found) if not same]
    if others:
        raise BadConfig(
            f"{', '.join(others)}: another configuration, model or data than on node 0; "
            "run the same command with the same files on every node"
        )
    blind = [f"rank {n} on {host}" for n, (host, _, sees) in enumerate(found) if not sees]
    if blind:
        raise BadConfig(
            f"{', '.join(blind)}: {job.out} is not the folder of that name on node 0; "
            "store.root must lie on a file system that all nodes share"
        )


def _appears(path: Path, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
