"""What each rank wrote into a checkpoint: rank 0 seals only what it sees whole.

On a network file system another machine's new file may appear late.  A manifest without it would
call a checkpoint whole that lacks a rank's optimizer or generators.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gradelora.errors import RankLost

# Size in bytes by POSIX name relative to the checkpoint's folder.
Parts = Mapping[str, int]


def written_by(folder: Path, rank: int) -> dict[str, int]:
    """The files of one rank; DeepSpeed and the Trainer put its number into their names."""
    own = re.compile(rf"(?:^|_)(?:rank|rng_state)_{rank}[_.]")
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and own.search(path.name)
    }


def gathered(folder: Path) -> dict[str, int]:
    """The files of all ranks, as each sees its own.  All ranks must call when they have written."""
    if not dist.is_initialized():
        return {}
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, written_by(folder, dist.get_rank()))
    parts = {name: size for part in told for name, size in part.items()}
    # Without its generators a rank would go on with other dropout, and nothing would say so.
    silent = [rank for rank in range(len(told)) if len(told) > 1 and f"rng_state_{rank}.pth" not in parts]
    if silent:
        raise RankLost(f"{folder}: ranks {silent} left no state of their generators; the checkpoint is not sealed")
    return parts


def await_all(folder: Path, parts: Parts, patience_s: float) -> None:
    """Return when every part is here in full; RankLost, naming the first that is not, after `patience_s`."""
    until = time.monotonic() + patience_s
    while late := sorted(name for name, size in parts.items() if _size(folder / name) != size):
        if time.monotonic() > until:
            raise RankLost(
                f"{folder / late[0]}: {_size(folder / late[0])} of {parts[late[0]]} bytes are seen here after "
                f"{patience_s:.3g} s, and {len(late) - 1} more files are not whole; the checkpoint is not sealed. "
                "Is store.root on a file system that all nodes share?"
            )
        time.sleep(0.1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
