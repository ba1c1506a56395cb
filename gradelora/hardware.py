"""What a machine has: GPUs, host memory, cores.  Read without torch, or taken from a preset."""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gradelora.artifacts import Frozen
from gradelora.errors import BadConfig


class Hardware(Frozen):
    """One machine; `gpu_bytes` is the memory of each GPU, `gpu` its name as the driver tells it.

    Of this machine memory is what is free now: what other programs hold is no use to a run.
    """

    name: str
    gpus: int
    gpu_bytes: int
    host_bytes: int
    cores: int
    gpu: str = ""


class Roofline(Frozen):
    """What a GPU can do at most: dense bf16 operations, bytes of its memory, bytes to its neighbours, a second."""

    operations: float
    memory_bytes: float
    link_bytes: float


# NVIDIA's data sheets; the first that occurs in the driver's name.  Links: NVLink, one direction.
ROOFLINES = {
    "H200": Roofline(operations=989e12, memory_bytes=4.8e12, link_bytes=450e9),
    "H100": Roofline(operations=989e12, memory_bytes=3.35e12, link_bytes=450e9),
    "A100": Roofline(operations=312e12, memory_bytes=2.0e12, link_bytes=300e9),
}


# nvidia-smi answers within a second or two, without its persistence daemon within ten.
DRIVER_TIMEOUT_S = 30.0
# Nominal memory as nvidia-smi reports it, less nothing: the plan has its own reserve.
H200_BYTES, H100_BYTES, A100_BYTES = 150_754_820_096, 85_520_809_984, 85_899_345_920
PRESETS = {
    "2xh200": Hardware(name="2x H200 SXM", gpus=2, gpu_bytes=H200_BYTES, host_bytes=2**39, cores=64, gpu="H200"),
    "1xh200": Hardware(name="1x H200 SXM", gpus=1, gpu_bytes=H200_BYTES, host_bytes=2**38, cores=32, gpu="H200"),
    "8xh100": Hardware(name="8x H100 80 GB", gpus=8, gpu_bytes=H100_BYTES, host_bytes=2**40, cores=128, gpu="H100"),
    "1xh100": Hardware(name="1x H100 80 GB", gpus=1, gpu_bytes=H100_BYTES, host_bytes=2**38, cores=32, gpu="H100"),
    "2xa100": Hardware(name="2x A100 80 GB", gpus=2, gpu_bytes=A100_BYTES, host_bytes=2**39, cores=64, gpu="A100"),
    "cpu": Hardware(name="CPU, 2 cores", gpus=0, gpu_bytes=0, host_bytes=24 * 2**30, cores=2),
}


def preset(name: str) -> Hardware:
    """A preset by name.  Raises BadConfig naming the known ones."""
    if name not in PRESETS:
        raise BadConfig(f"--hardware {name}: unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]


def known_roofline(gpu: str) -> Roofline | None:
    """Of a GPU by the driver's name for it; None where no data sheet is known."""
    return next((line for name, line in ROOFLINES.items() if name in gpu), None)


def gpu_bytes() -> list[int]:
    """Free memory of each GPU that CUDA_VISIBLE_DEVICES shows, in its order; none without a driver.

    As CUDA reads it: numbers or beginnings of UUIDs, and what follows one that names no GPU is not seen.
    """
    sizes = [int(line) * 2**20 for line in _ask_driver("memory.free") if line.strip().isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return sizes
    names = [str(number) for number in range(len(sizes))]
    uuids = [line.strip() for line in _ask_driver("uuid")] if "GPU-" in visible else []
    shown = []
    for entry in (part.strip() for part in visible.split(",")):
        matching = [i for i, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
        place = names.index(entry) if entry in names else (matching[0] if len(matching) == 1 else None)
        if place is None or place >= len(sizes):
            break
        shown.append(sizes[place])
    return shown


def missing_tools() -> list[str]:
    """What DeepSpeed compiles its operators with and is not on PATH."""
    return [tool for tool in ("ninja", "g++") if shutil.which(tool, path=tool_path()) is None]


def tool_path() -> str:
    """PATH with this interpreter's own folder first: torchrun and ninja lie there."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def this_machine() -> Hardware:
    """The machine that this runs on."""
    sizes = gpu_bytes()
    return Hardware(
        name="this machine",
        gpus=len(sizes),
        gpu_bytes=min(sizes, default=0),
        host_bytes=available_host_bytes(),
        cores=len(os.sched_getaffinity(0)),
        gpu=_ask_driver("name")[0].strip() if sizes else "",
    )


@functools.cache
def machine_kind() -> str:
    """What makes one machine as fast as another: `2 x NVIDIA H200, 64 cores of Intel(R) Xeon(R) ...`.

    The same for every machine of a kind, so that one rented today knows what yesterday's did.
    """
    here = this_machine()
    models = re.findall(r"^(?:model name|CPU part)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    gpus = f"{here.gpus} x {here.gpu}, " if here.gpus else ""
    return f"{gpus}{here.cores} cores of {models[0] if models else platform.machine()}"


def driver_version() -> str:
    """The NVIDIA driver's version; empty without a driver."""
    return next((line.strip() for line in _ask_driver("driver_version") if line.strip()), "")


def _ask_driver(what: str) -> list[str]:
    """One line a GPU; none where the tool is absent, fails or hangs, as it does beside a wedged driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def available_host_bytes() -> int:
    """What a process may still take: what the page cache would give back counts as free (proc_meminfo(5))."""
    return min(_meminfo("MemAvailable"), _host_bytes())


def _meminfo(what: str) -> int:
    return int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024


def _host_bytes() -> int:
    """MemTotal, or the control group's limit where that is lower."""
    total = _meminfo("MemTotal")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        return min(total, int(limit.read_text()))
    return total
