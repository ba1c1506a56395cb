"""What a user runs first: one line a check, ok or the remedy.  No torch, no Prefect needed."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from gradelora.artifacts import Frozen
from gradelora.config import Runtime, StoreConfig
from gradelora.errors import GradeloraError
from gradelora.hardware import driver_version, this_machine, tool_path
from gradelora.hub import HubClient, RepoCache
from gradelora.preflight.disk import nearest_existing

# Where a store lies that no configuration names.
DEFAULT_STORE = Path(".gradelora/store")
ROOMY_BYTES = 100 * 10**9
TOOLS = {"ninja": "pip install ninja", "g++": "apt-get install g++"}


class Finding(Frozen):
    """One check: what was looked at, what was found, and the remedy where it is not ok."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def examine(runtime: Runtime, store: StoreConfig) -> list[Finding]:
    """All checks, in the order in which a run would meet them."""
    client = HubClient(runtime)
    findings = [_python(), *_packages(), *(_tool(name, remedy) for name, remedy in TOOLS.items()), _compiled()]
    findings += [_driver(), _gpus(), _disk("hub cache", client.cache), _disk("store", store.root)]
    findings += [_orphans(client.cache), _parts(client.cache), _switch(), _token(client)]
    findings += [_mirror(store.mirror)] if store.mirror else []
    return [*findings, *_prefect(os.environ.get("PREFECT_API_URL", ""))]


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
    remedy = "install the NVIDIA driver, or train on the CPU: train.device=cpu, evaluate.device=cpu"
    found = f"driver {version}, torch {torch}" if version else "nvidia-smi tells of none"
    return Finding(check="driver", ok=bool(version), found=found, remedy=remedy)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> Finding:
    machine = this_machine()
    found = f"{machine.gpus} x {machine.gpu} with {machine.gpu_bytes / 1e9:.0f} GB each" if machine.gpus else "none"
    remedy = "only deployments with train.device=cpu will run here"
    return Finding(check="gpus", ok=machine.gpus > 0, found=found, remedy=remedy)


def _disk(name: str, folder: Path) -> Finding:
    where = nearest_existing(folder)
    free = shutil.disk_usage(where).free
    ok = free >= ROOMY_BYTES and os.access(where, os.W_OK)
    remedy = (
        "gpt-oss-120b takes 65 GB, a merge as much again: choose a larger disk"
        if free < ROOMY_BYTES
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


def _prefect(api: str) -> Iterator[Finding]:
    """The server that PREFECT_API_URL names, and the slot that training holds there."""
    if not api:
        yield Finding(check="prefect", ok=True, found="PREFECT_API_URL is not set: runs start a server of their own")
        return
    ask: Callable[[str], httpx.Response] = lambda path: httpx.get(f"{api}{path}", timeout=10)  # noqa: E731
    try:
        ask("/health").raise_for_status()
        limit = ask("/v2/concurrency_limits/gpu")
    except httpx.HTTPError as error:
        yield Finding(check="prefect", ok=False, found=f"{api}: {error}", remedy="prefect server start")
        return
    yield Finding(check="prefect", ok=True, found=api)
    remedy = "prefect gcl create gpu --limit 1"
    yield Finding(
        check="gpu limit", ok=limit.is_success, found="there" if limit.is_success else "missing", remedy=remedy
    )
