"""What a user runs first: one line a check, ok or the remedy.  No torch, no Prefect needed."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gradelora.config import RunConfig, Runtime, StoreConfig
from gradelora.doctor.finding import Finding
from gradelora.doctor.server import server_findings
from gradelora.errors import GradeloraError
from gradelora.hardware import driver_version, this_machine, tool_path
from gradelora.hub import HubClient, RepoCache
from gradelora.preflight.disk import nearest_existing

# Where a store lies that no configuration names.
DEFAULT_STORE = Path(".gradelora/store")
ROOMY_BYTES, ROOMY_CPU_BYTES = 100 * 10**9, 5 * 10**9
# NVIDIA's release notes: the first driver of each major version of CUDA.
OLDEST_DRIVER = {"12": 525, "13": 580}
TOOLS = {"ninja": "pip install ninja", "g++": "apt-get install g++"}


def examine(runtime: Runtime, store: StoreConfig, run: RunConfig | None = None) -> list[Finding]:
    """All checks, in the order in which a run would meet them; of `run`, where one is given, only what it needs."""
    gpus = run is None or "cuda" in (run.train.device, run.evaluate.device)
    roomy = ROOMY_BYTES if gpus else ROOMY_CPU_BYTES
    client = HubClient(runtime)
    findings = [_python(), *_packages(), *(_tool(name, remedy) for name, remedy in TOOLS.items()), _compiled()]
    findings += [_driver(), _gpus()] if gpus else []
    findings += [_disk("hub cache", client.cache, roomy), _disk("store", store.root, roomy)]
    findings += [_orphans(client.cache), _parts(client.cache), _switch(), _token(client)]
    findings += [_mirror(store.mirror)] if store.mirror else []
    return [*findings, *server_findings()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        check="python", ok=sys.version_info[:2] in {(3, 11), (3, 12)}, found=version, remedy="use Python 3.11"
    )


def _packages() -> Iterator[Finding]:
    """What gradelora asks for, against what is installed: one line for all that agree, one for each that does not."""
    from packaging.requirements import Requirement

    agreeing = []
    for text in importlib.metadata.requires("gradelora") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                check=f"package {requirement.name}", ok=False, found="missing", remedy=f"pip install '{text}'"
            )
            continue
        if requirement.specifier.contains(version, prereleases=True):
            agreeing.append(f"{requirement.name} {version}")
        else:
            found = f"{version}, tested with {requirement.specifier}"
            yield Finding(check=f"package {requirement.name}", ok=False, found=found, remedy=f"pip install '{text}'")
    pinned = [each for each in agreeing if each.split()[0] in {"torch", "transformers", "peft", "deepspeed", "prefect"}]
    yield Finding(check="packages", ok=bool(agreeing), found=f"{len(agreeing)} as tested: {', '.join(pinned)}")


def _tool(name: str, remedy: str) -> Finding:
    found = shutil.which(name, path=tool_path())
    return Finding(check=name, ok=found is not None, found=found or "not on PATH", remedy=remedy)


def _compiled() -> Finding:
    """DeepSpeed's operator for CPUs: the first training waits a minute for it."""
    from gradelora.train.launching import environment_of_tools

    folder = Path(environment_of_tools()["TORCH_EXTENSIONS_DIR"])
    built = any(folder.glob("**/*.so"))
    found = f"compiled in {folder}" if built else f"not yet compiled in {folder}: the first training on a CPU does it"
    return Finding(check="deepspeed operator", ok=True, found=found)


def _driver() -> Finding:
    """The NVIDIA driver, and whether the installed torch can use it."""
    version, torch = driver_version(), _version("torch")
    if version and torch.endswith("+cpu"):
        found = f"driver {version}, but torch {torch} is built for CPUs"
        return Finding(check="driver", ok=False, found=found, remedy="pip install --force-reinstall torch from PyPI")
    cuda = torch_cuda()
    oldest = OLDEST_DRIVER.get(cuda.partition(".")[0])
    if version and oldest and int(version.partition(".")[0]) < oldest:
        found = f"driver {version}, but torch {torch} is built for CUDA {cuda}"
        return Finding(check="driver", ok=False, found=found, remedy=f"install driver {oldest} or newer")
    remedy = "install the NVIDIA driver, or train on the CPU: train.device=cpu, evaluate.device=cpu"
    found = f"driver {version}, torch {torch}" if version else "nvidia-smi tells of none"
    return Finding(check="driver", ok=bool(version), found=found, remedy=remedy)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def torch_cuda() -> str:
    """`13.0`: what torch is built for, as it says without being imported; empty for a torch for CPUs."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    found = re.search(r"^cuda\b[^=\n]*= *'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _gpus() -> Finding:
    machine = this_machine()
    found = (
        f"{machine.gpus} x {machine.gpu} with {machine.gpu_bytes / 1e9:.0f} GB free each" if machine.gpus else "none"
    )
    remedy = "only deployments with train.device=cpu will run here"
    return Finding(check="gpus", ok=machine.gpus > 0, found=found, remedy=remedy)


def _disk(name: str, folder: Path, roomy_bytes: int) -> Finding:
    where = nearest_existing(folder)
    free = shutil.disk_usage(where).free
    ok = free >= roomy_bytes and os.access(where, os.W_OK)
    remedy = (
        "gpt-oss-120b takes 65 GB, a merge as much again; `gradelora plan` counts yours: choose a larger disk"
        if free < roomy_bytes
        else "not writable"
    )
    return Finding(check=name, ok=ok, found=f"{folder}: {free / 1e9:.0f} GB free", remedy=remedy)


def _repositories(cache: Path) -> list[RepoCache]:
    folders = sorted(cache.glob("models--*"))
    return [RepoCache(cache, folder.name.removeprefix("models--").replace("--", "/", 1)) for folder in folders]


def _mirror(url: str) -> Finding:
    """Whether the mirror can be read and written with what the environment holds."""
    from gradelora.mirror.probe import probe

    try:
        found = probe(url)
    except GradeloraError as error:
        remedy = "see docs/machines.md; runs go on without their mirror meanwhile"
        return Finding(check="mirror", ok=False, found=str(error), remedy=remedy)
    return Finding(check="mirror", ok=True, found=found)


def _orphans(cache: Path) -> Finding:
    """Parts of stock downloads, with which nothing goes on."""
    left = [o for repo in _repositories(cache) for o in repo.orphans() if o.path.parent != repo.parts]
    if not left:
        return Finding(check="orphans", ok=True, found="no parts of abandoned downloads")
    found = f"{len(left)} parts of abandoned downloads, {sum(o.size for o in left) / 1e9:.1f} GB"
    return Finding(check="orphans", ok=False, found=found, remedy="gradelora cache lists and removes them")


def _parts(cache: Path) -> Finding:
    """Our own parts: no fault, the next fetch of the same files goes on from them."""
    parts = [part for repo in _repositories(cache) for part in repo.parts.glob("*")]
    size = sum(part.stat().st_blocks * 512 for part in parts)
    found = f"{len(parts)} files, {size / 1e9:.1f} GB: a fetch goes on from them" if parts else "none on their way"
    return Finding(check="downloads", ok=True, found=found)


def _switch() -> Finding:
    on = "HF_HUB_ENABLE_HF_TRANSFER" in os.environ
    found = "HF_HUB_ENABLE_HF_TRANSFER is set" if on else "no stale switch set"
    return Finding(check="hf_transfer", ok=not on, found=found, remedy="huggingface_hub 2 ignores it: unset it")


def _token(client: HubClient) -> Finding:
    """Whether the Hub takes the token; the token itself is never shown."""
    if not client.token:
        return Finding(check="token", ok=True, found="HF_TOKEN is not set; public models need none")
    from huggingface_hub import HfApi

    try:
        client.call("the token", lambda: HfApi(endpoint=client.endpoint, token=client.token).whoami())
    except GradeloraError as error:
        return Finding(
            check="token", ok=False, found=f"refused or not checked: {error}", remedy="make a new one, export HF_TOKEN"
        )
    return Finding(check="token", ok=True, found="HF_TOKEN is set and accepted")


__all__ = ["DEFAULT_STORE", "Finding", "examine"]
