"""What `gradelora doctor --gpu` measured on this kind of machine, kept beside the artifacts.

The plan takes its rates from here where there are any; those of another kind of machine are not used.
"""

import os
from pathlib import Path
from typing import Literal

from gradelora.artifacts import Frozen, sha256_text
from gradelora.hardware import machine_kind
from gradelora.store import Store

FOLDER = "calibration"
Device = Literal["cuda", "cpu"]
Precision = Literal["bf16", "fp32"]


class Calibration(Frozen):
    """Rates of one kind of machine, None where a measurement failed or was not made.

    Rates of computing are those of one rank while all `ranks` work.  `step_operations_per_s` is what
    a training step reaches beyond its fixed part, which is `layer_s` a layer and micro-step and the
    unpacking; `starting_s` is a training's way to its first step, `step_memory_ratio` its peak memory
    as a multiple of what the plan had said.
    """

    machine: str
    device: Device
    precision: Precision
    made_at: str
    versions: dict[str, str]
    ranks: int
    product_operations_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    unpacked_per_s: float | None = None
    step_operations_per_s: float | None = None
    layer_s: float | None = None
    starting_s: float | None = None
    step_memory_ratio: float | None = None
    all_reduce_bytes_per_s: float | None = None
    store_written_per_s: float | None = None
    store_read_per_s: float | None = None
    cache_written_per_s: float | None = None
    cache_read_per_s: float | None = None
    hashed_per_s: float | None = None
    network_bytes_per_s: float | None = None


def write_calibration(calibration: Calibration, root: Path) -> Path:
    """Keep it in the store at `root`, readable by its owner alone; an older one of the kind is replaced."""
    folder = Store(root).root / FOLDER
    folder.mkdir(exist_ok=True, mode=0o700)
    path = folder / _name(calibration.machine, calibration.device)
    part = path.with_suffix(f".{os.getpid()}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(calibration.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def read_calibration(root: Path, device: Device) -> Calibration | None:
    """The store's calibration of this very kind of machine; None where there is none that can be read."""
    here = machine_kind()
    try:
        text = (root / FOLDER / _name(here, device)).read_text(encoding="utf-8")
        found = Calibration.model_validate_json(text)
    except (OSError, ValueError):
        return None
    return found if (found.machine, found.device) == (here, device) else None


def _name(machine: str, device: Device) -> str:
    return f"{sha256_text(machine)[:16]}-{device}.json"
