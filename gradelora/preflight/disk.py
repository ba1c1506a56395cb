"""Disk by file system: what the whole run will write where, at its worst moment."""

import json
import shutil
from pathlib import Path
from typing import Any

from gradelora.artifacts import BaseModel, Frozen
from gradelora.config import RunConfig, TrainConfig
from gradelora.hub import RepoCache
from gradelora.preflight.memory import GB, Need, adapter_width
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
    """Needs at the worst moment of the run, grouped by device: two folders on one disk are added up.

    What is sealed is there already.
    """
    store, train = run.store.root, run.train

    def need(stage: str, what: str, size_bytes: int) -> list[tuple[Path, Need]]:
        return [] if stage in foresight.artifacts else [(store, Need(what=what, bytes=size_bytes))]

    always = [(cache, Need(what="weights still to fetch", bytes=missing_bytes(base, cache)))]
    always += need("encode", "records and encoded data", _prepared_bytes(work, data_bytes))
    checkpoints = (train.keep_checkpoints + 1) * checkpoint_bytes(train, size, base)
    adapter = need("train", "adapter", adapter_bytes(train, size, base, work.steps or 0))
    training = need("train", "checkpoints", checkpoints) + adapter
    predictions = PREDICTION_BYTES * (work.held_out_items or 0)
    after = adapter + need("evaluate", "predictions and report", REPORT_BYTES + predictions)
    if run.merge.enabled:
        after += need("merge", "merged model", merged_bytes(run, size, foresight))
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
    return max(0, size.merged_bytes(run.merge.dtype) - foresight.merged_bytes)


def _prepared_bytes(work: Workload, data_bytes: int) -> int:
    return max(PREPARED_PER_DATA_BYTE * data_bytes, 4 * work.longest * (work.items or 0))


def checkpoint_bytes(train: TrainConfig, size: ModelSize, base: BaseModel) -> int:
    """One sealed checkpoint: values, fp32 values and two moments, and what torch.save adds a tensor and a file.

    Beside them the best adapter so far, where evaluations choose it.

    Measured by bench/bench_plan.py; DeepSpeed's file of values holds the trainable ones alone.
    """
    file, tensor = OVERHEAD[train.parallel]
    overhead = train.processes * file + tensor * size.lora_tensors
    if train.best != "last":
        overhead += _weights_bytes(train, size, base)
    if train.parallel == "layers":
        return (4 + 8) * size.lora_parameters + overhead
    if train.parallel == "zero3":
        return 12 * size.lora_parameters + overhead
    width = 2 if train.precision == "bf16" else 4
    # A tied head is trained no more than its twin, but DeepSpeed leaves out frozen weights by one name alone.
    return (width + 12) * size.lora_parameters + width * size.tied_parameters + overhead


def adapter_bytes(train: TrainConfig, size: ModelSize, base: BaseModel, steps: int) -> int:
    """adapter_model.safetensors to the byte, adapter_config.json and history.json nearly so."""
    return _weights_bytes(train, size, base) + ADAPTER_CONFIG_BYTES + HISTORY_BYTES * steps


def _weights_bytes(train: TrainConfig, size: ModelSize, base: BaseModel) -> int:
    """The adapter's safetensors file."""
    width = adapter_width(train)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for matrix in lora_matrices(base.tensors, train.lora):
        for part, shape in (("A", [matrix.rank, matrix.columns]), ("B", [matrix.rows, matrix.rank])):
            end = offset + width * shape[0] * shape[1]
            header[f"base_model.model.{matrix.module}.lora_{part}.weight"] = {
                "dtype": {2: "BF16", 4: "F32"}[width],
                "shape": shape,
                "data_offsets": [offset, end],
            }
            offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + width * size.lora_parameters


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
