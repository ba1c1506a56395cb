"""What a user runs first: one line a check, ok or the remedy.  No torch, no Prefect needed."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from gradelora.artifacts import Frozen
from gradelora.config import Runtime
from gradelora.errors import GradeloraError
from gradelora.hardware import this_machine, tool_path
from gradelora.hub import HubClient
from gradelora.preflight.disk import nearest_existing

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "datasets",
    "huggingface_hub",
    "prefect",
    "great-expectations",
)
ROOMY_BYTES = 100 * 10**9


class Finding(Frozen):
    """One check: what was looked at, what was found, and the remedy where it is not ok."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def examine(runtime: Runtime, store_root: Path) -> list[Finding]:
    """All checks, in the order in which a run would meet them."""
    client = HubClient(runtime)
    findings = [_python(), *_packages(), _tool("ninja", "pip install ninja"), _tool("g++", "apt-get install g++")]
    findings += [_gpus(), _disk("hub cache", client.cache), _disk("store", store_root), *_orphans(client.cache)]
    findings += [_switch(), _token(client), *_prefect(os.environ.get("PREFECT_API_URL", ""))]
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        check="python", ok=sys.version_info[:2] in {(3, 11), (3, 12)}, found=version, remedy="use Python 3.11"
    )


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        try:
            yield Finding(check=package, ok=True, found=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(check=package, ok=False, found="missing", remedy="pip install -r requirements.lock")


def _tool(name: str, remedy: str) -> Finding:
    found = shutil.which(name, path=tool_path())
    return Finding(check=name, ok=found is not None, found=found or "not on PATH", remedy=remedy)


def _gpus() -> Finding:
    machine = this_machine()
    found = f"{machine.gpus} with {machine.gpu_bytes / 1e9:.0f} GB each" if machine.gpus else "none"
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


def _orphans(cache: Path) -> Iterator[Finding]:
    parts = list(cache.glob("models--*/blobs/*.incomplete"))
    if parts:
        size = sum(p.stat().st_size for p in parts) / 1e9
        found = f"{len(parts)} parts of abandoned downloads, {size:.1f} GB"
        yield Finding(check="orphans", ok=False, found=found, remedy=f"rm {cache}/models--*/blobs/*.incomplete")


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
