"""A folder with a receipt: whole, verifiable, and made visible in one step."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gradelora.artifacts import Artifact, FileEntry, Frozen, sha256_file
from gradelora.errors import Damaged

A = TypeVar("A", bound=Artifact)
RECEIPT = "receipt.json"
# Below this an artifact is re-hashed on every hit: a tenth of a second.
ALWAYS_DEEP_BYTES = 32 * 2**20


class Receipt(Frozen):
    """The record beside an artifact: how it came to be and what it holds."""

    stage: str
    version: int
    key: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    artifact: dict[str, Any]
    versions: dict[str, str]
    created: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0
    machine: str = ""


def verify_folder(folder: Path, *, deep: bool) -> Receipt:
    """Check one sealed folder of whatever stage against its receipt.  Raises Damaged."""
    receipt = read_receipt(folder)
    try:
        files = [FileEntry.model_validate(f) for f in receipt.artifact["files"]]
        where = folder / receipt.artifact["path"]
    except (ValidationError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / RECEIPT}: lists no files; the stage will run again") from error
    verify(where, files, deep=deep)
    return receipt


def read_receipt(folder: Path) -> Receipt:
    """The receipt of a sealed folder.  Raises Damaged where it is missing or unreadable."""
    try:
        return Receipt.model_validate_json((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise Damaged(f"{folder / RECEIPT}: missing or unreadable; the stage will run again") from error


def verify(folder: Path, files: Sequence[FileEntry], *, deep: bool) -> None:
    """Every file against its entry: size and time, or contents.  Raises Damaged."""
    deep = deep or sum(f.size for f in files) <= ALWAYS_DEEP_BYTES
    for entry in files:
        _verify_file(folder / entry.name, entry, deep)


def _verify_file(path: Path, entry: FileEntry, deep: bool) -> None:
    try:
        stat = path.stat()
    except OSError as error:
        raise Damaged(f"{path}: missing; the stage will run again") from error
    if stat.st_size != entry.size:
        raise Damaged(f"{path}: {stat.st_size} bytes, {entry.size} in the receipt; the stage will run again")
    # Another time alone is no damage (a copy, a touch): the contents decide.
    if (deep or stat.st_mtime_ns != entry.mtime_ns) and sha256_file(path) != entry.sha256:
        raise Damaged(f"{path}: contents differ from the receipt; the stage will run again")


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for where, _, files in os.walk(folder):
        for name in files:
            fsync(Path(where) / name)
        fsync(Path(where))


def publish(out: Path, receipt: bytes, folder: Path) -> None:
    """Make `out` durable, then visible as `folder`; the receipt is written last."""
    flush(out)
    part = out / f"{RECEIPT}.part"
    part.write_bytes(receipt)
    fsync(part)
    part.replace(out / RECEIPT)
    fsync(out)
    out.rename(folder)
    fsync(folder.parent)


def restored(receipt: Receipt, folder: Path, artifact_type: type[A]) -> A:
    """The artifact of a receipt; a path inside the folder is stored relative to it."""
    try:
        return artifact_type.model_validate({**receipt.artifact, "path": folder / receipt.artifact["path"]})
    except (ValidationError, KeyError) as error:
        raise Damaged(f"{folder / RECEIPT}: describes no {artifact_type.__name__}; the stage will run again") from error
