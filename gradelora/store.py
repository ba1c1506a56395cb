"""Content-addressed folders: key, build, seal, verify.

`<root>/<stage>/<key>/` holds one artifact.  It is filled under a private name, fsynced,
sealed by `receipt.json` written last and renamed into place, so a folder with a receipt is
whole.  A stage is a function `stage(config, *inputs, out, runtime) -> Artifact` in a module
with a VERSION; its name, its output's type and whether it RESUMES a half-filled folder are
read from there.
"""

import contextlib
import fcntl
import importlib.metadata
import inspect
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ValidationError

from gradelora import child
from gradelora.artifacts import ASIDE, Artifact, FileEntry, Frozen, canonical_json, sha256_file, sha256_text
from gradelora.config import Runtime
from gradelora.errors import Damaged

A = TypeVar("A", bound=Artifact)
RECEIPT = "receipt.json"
KEY_LENGTH = 64
# Below this an artifact is re-hashed on every hit: a tenth of a second.
ALWAYS_DEEP_BYTES = 32 * 2**20
PACKAGES = ("gradelora", "torch", "transformers", "peft", "deepspeed", "datasets", "huggingface_hub", "prefect")


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


@dataclass(frozen=True)
class Obtained(Generic[A]):
    """An artifact, whether it was there already, how long this took and why it was built.

    `label` tells apart two calls of one stage (`fetch tokenizer`, `fetch everything`).
    """

    stage: str
    artifact: A
    cached: bool
    seconds: float
    why: str
    label: str


def key_of(stage: Callable[..., Any], config: Frozen, inputs: tuple[Artifact, ...]) -> str:
    """sha256 of stage name, VERSION, config and the digests of the inputs.

    Raises TypeError for a value that cannot be hashed stably.
    """
    return sha256_text(canonical_json(_identity(stage, config, inputs)))


def _identity(stage: Callable[..., Any], config: Frozen, inputs: tuple[Artifact, ...]) -> dict[str, Any]:
    names = list(inspect.signature(stage).parameters)[1 : 1 + len(inputs)]
    return {
        "stage": stage.__name__,
        "version": sys.modules[stage.__module__].VERSION,
        "config": config.model_dump(mode="json"),
        "inputs": {name: artifact.digest for name, artifact in zip(names, inputs, strict=True)},
    }


class Store:
    """The folders under one root, readable by their owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)

    def folder(self, stage: str, key: str) -> Path:
        """Where a sealed artifact lies."""
        return self.root / stage / key

    def find(self, stage: Callable[..., A], config: Frozen, *inputs: Artifact, deep: bool = False) -> A | None:
        """The verified artifact of these inputs, or None where there is none.  Raises Damaged."""
        folder = self.folder(stage.__name__, key_of(stage, config, inputs))
        if not folder.exists():
            return None
        receipt = read_receipt(folder)
        artifact = _restored(receipt, folder, get_type_hints(stage)["return"])
        verify(artifact.path, artifact.files, deep=deep)
        if artifact.digest != receipt.digest:
            raise Damaged(f"{folder / RECEIPT}: its digest does not match its contents; the stage will run again")
        return artifact

    def obtain(
        self,
        stage: Callable[..., A],
        config: Frozen,
        *inputs: Artifact,
        runtime: Runtime,
        run: Callable[..., A] = child.call,
    ) -> Obtained[A]:
        """The artifact of `stage(config, *inputs)`: verified if it is there, else built and sealed.

        `run(stage, config, *inputs, out=..., runtime=...)` does the work; the default is a
        child process.  Two calls with one key: one works, the other waits and takes its result.
        """
        started = time.monotonic()
        name, key = stage.__name__, key_of(stage, config, inputs)
        label = " ".join(filter(None, [name, getattr(config, "part", "")]))
        with self._held(name, key):
            try:
                found = self.find(stage, config, *inputs)
                why = f"no {name} artifact has this key"
            except Damaged as damage:
                found, why = None, str(damage)
                shutil.rmtree(self.folder(name, key))
            if found is not None:
                return Obtained(name, found, True, time.monotonic() - started, "verified against its receipt", label)
            out = self._private(stage, key)
            built = run(stage, config, *inputs, out=out, runtime=runtime)
            receipt = _receipt(stage, config, inputs, key, built, out, time.monotonic() - started)
            sealed = self._seal(built, receipt, out)
        return Obtained(name, sealed, False, time.monotonic() - started, why, label)

    def _private(self, stage: Callable[..., Any], key: str) -> Path:
        """The folder to fill: empty, or as an earlier attempt left it where the stage RESUMES."""
        out = self.root / stage.__name__ / f".{key}.building"
        if not getattr(sys.modules[stage.__module__], "RESUMES", False):
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        return out

    def _seal(self, built: A, receipt: Receipt, out: Path) -> A:
        """Make `out` durable, then visible under its key; the receipt is written last."""
        folder = self.folder(receipt.stage, receipt.key)
        for where, _, files in os.walk(out):
            for name in files:
                fsync(Path(where) / name)
            fsync(Path(where))
        part = out / f"{RECEIPT}.part"
        part.write_text(receipt.model_dump_json(indent=1))
        fsync(part)
        part.replace(out / RECEIPT)
        fsync(out)
        out.rename(folder)
        fsync(folder.parent)
        return built.model_copy(update={"path": folder}) if built.path == out else built

    @contextlib.contextmanager
    def _held(self, stage: str, key: str) -> Iterator[None]:
        """The exclusive right to one key; the kernel frees it when its holder dies."""
        (self.root / stage).mkdir(exist_ok=True, mode=0o700)
        with (self.root / stage / f".{key}.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # Polled, so that a waiting run can be cancelled.
                    time.sleep(0.3)
            yield

    def folders(self) -> Iterator[Path]:
        """Every sealed folder; those that are being built begin with a dot."""
        for path in sorted(self.root.glob("*/*/")):
            if not path.name.startswith(".") and len(path.name) == KEY_LENGTH:
                yield path


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


def _restored(receipt: Receipt, folder: Path, artifact_type: type[A]) -> A:
    """The artifact of a receipt; a path inside the folder is stored relative to it."""
    try:
        return artifact_type.model_validate({**receipt.artifact, "path": folder / receipt.artifact["path"]})
    except (ValidationError, KeyError) as error:
        raise Damaged(f"{folder / RECEIPT}: describes no {artifact_type.__name__}; the stage will run again") from error


def _receipt(
    stage: Callable[..., Any],
    config: Frozen,
    inputs: tuple[Artifact, ...],
    key: str,
    built: Artifact,
    out: Path,
    seconds: float,
) -> Receipt:
    usage = out / ASIDE / child.USAGE
    peak = child.Usage.model_validate_json(usage.read_text()).peak_rss_bytes if usage.exists() else 0
    artifact = built.model_dump(mode="json")
    artifact["path"] = "." if built.path == out else str(built.path)
    return Receipt(
        **_identity(stage, config, inputs),
        key=key,
        digest=built.digest,
        artifact=artifact,
        versions={p: importlib.metadata.version(p) for p in PACKAGES},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(seconds, 3),
        peak_rss_bytes=peak,
    )
