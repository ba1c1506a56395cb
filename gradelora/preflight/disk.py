"""Disk by file system: what the whole run will write where, at its worst moment."""

import json
import shutil
from pathlib import Path
from typing import Any

from gradelora.artifacts import BaseModel, Frozen
from gradelora.config import RunConfig, TrainConfig
from gradelora.hub import RepoCache
from gradelora.preflight.memory import GB, Need
from gradelora.preflight.size import ModelSize, lora_matrices
from gradelora.preflight.workload import Workload
from gradelora.why import Foresight

# Kept free beside what is planned: logs, the database, other programs.
RESERVE_BYTES = 1_000_000_000
# Records as Arrow, then ids as int32 with the prompt in every item: measured on data/sample.
PREPARED_PER_DATA_BYTE = 8
PREDICTION_BYTES, REPORT_BYTES = 1_500, 2_000_000
# Measured by bench/bench_plan.py: (a rank or a run, a tensor of the adapter).
OVERHEAD = {"zero2": (42_112, 902), "zero3": (38_980, 2_196), "layers": (30_757, 936)}
ADAPTER_CONFIG_BYTES, HISTORY_BYTES = 1_160, 98


class DiskPlan(Frozen):
    """One file system: free now, and what the run will have added to it at its worst moment."""

    folder: Path
    free_bytes: int
    needs: tuple[Need, ...]
    moment: str = ""

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
    run: RunConfig,
    base: BaseModel,
    size: ModelSize,
    cache: Path,
    work: Workload,
    data_bytes: int,
    foresight: Foresight,
) -> tuple[DiskPlan, ...]:
    """Needs at the worst moment of the run, grouped by device: two folders on one disk are added up."""
    store = run.store.root
    always = [
        (cache, Need(what="weights still to fetch", bytes=missing_bytes(base, cache))),
        (store, Need(what="records and encoded data", bytes=_prepared_bytes(work, data_bytes))),
    ]
    adapter = adapter_bytes(run.train, size, base, work.steps or 0)
    training = [
        (store, Need(what="checkpoints", bytes=(run.train.keep_checkpoints + 1) * checkpoint_bytes(run.train, size))),
        (store, Need(what="adapter", bytes=adapter)),
    ]
    predictions = REPORT_BYTES + PREDICTION_BYTES * (work.held_out_items or 0)
    after = [
        (store, Need(what="adapter", bytes=adapter)),
        (
            store,
            Need(what="predictions and report", bytes=predictions),
        ),
    ]
    if run.merge.enabled:
        after.append((store, Need(what="merged model", bytes=merged_bytes(run, size, foresight))))
    # Checkpoints are removed when the adapter is sealed, so they never lie beside the merged model.
    moments = {"while training": always + training, "when all is done": always + after}
    free: dict[int, tuple[Path, int]] = {}
    for folder in (cache, store):
        place = nearest_existing(folder)
        free.setdefault(place.stat().st_dev, (place, shutil.disk_usage(place).free))
    return tuple(
        max((_at(moment, needs, device, *place) for moment, needs in moments.items()), key=lambda d: d.needed_bytes)
        for device, place in free.items()
    )


def _at(moment: str, needs: list[tuple[Path, Need]], device: int, folder: Path, free_bytes: int) -> DiskPlan:
    here = tuple(need for place, need in needs if nearest_existing(place).stat().st_dev == device)
    return DiskPlan(folder=folder, free_bytes=free_bytes, needs=here, moment=moment)


def merged_bytes(run: RunConfig, size: ModelSize, foresight: Foresight) -> int:
    """Bytes that the merge will still write: nothing where it is sealed, else less what lies there of it."""
    if "merge" in foresight.artifacts:
        return 0
    merged = size.bf16_bytes if run.merge.dtype == "bf16" else size.disk_bytes
    return max(0, merged - foresight.merged_bytes)


def _prepared_bytes(work: Workload, data_bytes: int) -> int:
    return max(PREPARED_PER_DATA_BYTE * data_bytes, 4 * work.longest * (work.items or 0))


def checkpoint_bytes(train: TrainConfig, size: ModelSize) -> int:
    """One sealed checkpoint: values, fp32 values and two moments, and what torch.save adds a tensor and a file.

    Measured by bench/bench_plan.py; DeepSpeed's file of values holds the trainable ones alone.
    """
    base, tensor = OVERHEAD[train.parallel]
    overhead = train.processes * base + tensor * size.lora_tensors
    if train.parallel == "layers":
        return (4 + 8) * size.lora_parameters + overhead
    if train.parallel == "zero3":
        return 12 * size.lora_parameters + overhead
    width = 2 if train.precision == "bf16" else 4
    # A tied head is trained no more than its twin, but DeepSpeed leaves out frozen weights by one name alone.
    return (width + 12) * size.lora_parameters + width * size.tied_parameters + overhead


def adapter_bytes(train: TrainConfig, size: ModelSize, base: BaseModel, steps: int) -> int:
    """adapter_model.safetensors to the byte, adapter_config.json and history.json nearly so."""
    # DeepSpeed casts what is trained, too; without it PEFT keeps the adapter in fp32.
    width, dtype = (2, "BF16") if train.precision == "bf16" and train.parallel != "layers" else (4, "F32")
    lora = train.lora
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for matrix in lora_matrices(base.tensors, lora):
        for part, shape in (("A", [matrix.rank, matrix.columns]), ("B", [matrix.rows, matrix.rank])):
            end = offset + width * shape[0] * shape[1]
            header[f"base_model.model.{matrix.module}.lora_{part}.weight"] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [offset, end],
            }
            offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + width * size.lora_parameters + ADAPTER_CONFIG_BYTES + HISTORY_BYTES * steps


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
