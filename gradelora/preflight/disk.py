"""Disk by file system: what the whole run will write where, at its worst moment."""

import shutil
from pathlib import Path

from gradelora.artifacts import BaseModel, Frozen
from gradelora.config import RunConfig
from gradelora.hub import RepoCache
from gradelora.preflight.memory import GB, Need
from gradelora.preflight.size import ModelSize

# Kept free beside what is planned: logs, the database, other programs.
RESERVE_BYTES = 1_000_000_000
# ids as int32 and prompts that are stored once an item: measured on the sample.
ENCODED_PER_DATA_BYTE = 8


class DiskPlan(Frozen):
    """One file system: free now, and what the run will add to it."""

    folder: Path
    free_bytes: int
    needs: tuple[Need, ...]

    @property
    def needed_bytes(self) -> int:
        """All of the run's additions with the reserve."""
        return sum(n.bytes for n in self.needs) + RESERVE_BYTES

    @property
    def fits(self) -> bool:
        """Whether the run can write all of it."""
        return self.needed_bytes <= self.free_bytes

    def spelled(self) -> str:
        """`/data: 41.0 GB free, 131.0 GB needed (65.2 GB weights, ...)`."""
        parts = ", ".join(f"{n.bytes / GB:.1f} GB {n.what}" for n in self.needs if n.bytes)
        free, needed = self.free_bytes / GB, self.needed_bytes / GB
        return (
            f"{self.folder}: {free:.1f} GB free, {needed:.1f} GB needed ({parts}, {RESERVE_BYTES / GB:.0f} GB reserve)"
        )


def plan_disk(
    config: RunConfig, base: BaseModel, size: ModelSize, cache: Path, data_bytes: int
) -> tuple[DiskPlan, ...]:
    """Needs grouped by device, so that two folders on one disk are added up."""
    checkpoint = size.lora_parameters * (4 + 12)
    places = [
        (cache, Need(what="weights still to fetch", bytes=missing_bytes(base, cache))),
        (config.store.root, Need(what="encoded data", bytes=ENCODED_PER_DATA_BYTE * data_bytes)),
        (config.store.root, Need(what="checkpoints", bytes=(config.train.keep_checkpoints + 1) * checkpoint)),
    ]
    if config.merge.enabled:
        places.append((config.store.root, Need(what="merged model", bytes=size.disk_bytes)))
    by_device: dict[int, list[tuple[Path, Need]]] = {}
    for folder, need in places:
        existing = nearest_existing(folder)
        by_device.setdefault(existing.stat().st_dev, []).append((existing, need))
    return tuple(
        DiskPlan(
            folder=group[0][0],
            free_bytes=shutil.disk_usage(group[0][0]).free,
            needs=tuple(need for _, need in group),
        )
        for group in by_device.values()
    )


def missing_bytes(base: BaseModel, cache: Path) -> int:
    """Bytes that a fetch will still write: of files that are not whole, less what their parts take up already.

    A part is allocated in full when it is opened, so what it takes up is no need any more.
    """
    repo = RepoCache(cache, base.repo_id)
    missing = [f for f in base.remote_files if not repo.holds(base.commit, f)]
    return sum(max(0, f.size - repo.allocated_bytes(f)) for f in missing)


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the closest parent that is there: where it would be made."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
