"""One rank of the all-reduce that is measured: `torchrun -m gradelora.doctor.ranks DEVICE ANSWER`."""

import os
import sys
import time
from pathlib import Path

# Floats that are added up: a bucket of gradients on a GPU.
ELEMENTS = {"cuda": 2**27, "cpu": 2**23}
TIMES = 5


def main(device: str, answer: Path) -> int:
    """Write the bus bandwidth in bytes a second, as NCCL's own tests define it, or why the sum is wrong."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    world = dist.get_world_size()
    where = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    values = torch.full((ELEMENTS[device],), float(rank), device=where)
    dist.all_reduce(values)
    right = bool((values == world * (world - 1) / 2).all())
    times = []
    for _ in range(TIMES):
        values.fill_(1.0)
        dist.barrier()
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.monotonic()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    if rank == 0:
        moved = 2 * (world - 1) / world * values.nbytes
        answer.write_text(str(moved / min(times)) if right else "the sum over the ranks is wrong")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
