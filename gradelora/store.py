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
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, get_type_hints

from gradelora import child
from gradelora.artifacts import ASIDE, Artifact, Frozen, canonical_json, sha256_text
from gradelora.config import Runtime, StoreConfig
from gradelora.errors import Damaged
from gradelora.hardware import machine_kind
from gradelora.receipt import RECEIPT, Receipt, fsync, publish, read_receipt, restored, verify, verify_folder

A = TypeVar("A", bound=Artifact)
KEY_LENGTH, BUILDING = 64, ".building"
# Hours hang on what a mirror holds of a stage that RESUMES: one that does not answer is asked for so long.
PATIENCE_S = 300.0
PACKAGES = ("gradelora", "torch", "transformers", "peft", "deepspeed", "datasets", "huggingface_hub", "prefect")


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


def kin(out: Path) -> list[Path]:
    """The stage's other folders, sealed or being built, beside the one that it fills in a store; else none."""
    place = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}|\.[0-9a-f]{{{KEY_LENGTH}}}{re.escape(BUILDING)}")
    if not place.fullmatch(out.name) or not out.parent.is_dir():
        return []
    return sorted(p for p in out.parent.iterdir() if p.name != out.name and place.fullmatch(p.name))


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


class Mirror(Protocol):
    """A copy of the store elsewhere (gradelora.mirror); it never raises for what it cannot reach."""

    @property
    def url(self) -> str:
        """Where it is."""

    def pull(self, stage: str, key: str, into: Path, patience_s: float) -> bytes | None:
        """Bring an artifact's verified files into a private folder; its receipt, or None.

        Asked again for `patience_s` where it does not answer.  Raises NotEnoughDisk.
        """

    def offer(self, folder: Path) -> None:
        """Send a sealed folder, in the background, where the mirror lacks it."""

    def working(self, stage: str, key: str, out: Path, patience_s: float) -> contextlib.AbstractContextManager[None]:
        """While a stage that RESUMES works: begin from its newest checkpoint there, send each new one.

        Asked again for `patience_s` where it does not answer.  Raises NotEnoughDisk.
        """


class Store:
    """The folders under one root, readable by their owner alone."""

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self.mirror = mirror
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)

    @classmethod
    def of(cls, config: StoreConfig, say: Callable[[str], None] | None = None) -> Self:
        """The configured store with its mirror, whose warnings go to `say`.  Raises MissingTool."""
        if config.mirror is None:
            return cls(config.root)
        # A run without a mirror imports nothing of it.
        from gradelora.mirror import mirror_of

        return cls(config.root, mirror_of(config, say))

    def folder(self, stage: str, key: str) -> Path:
        """Where a sealed artifact lies."""
        return self.root / stage / key

    def building(self, stage: str, key: str) -> Path:
        """Where an artifact is filled until it is sealed."""
        return self.root / stage / f".{key}{BUILDING}"

    def find(self, stage: Callable[..., A], config: Frozen, *inputs: Artifact, deep: bool = False) -> A | None:
        """The verified artifact of these inputs, or None where there is none.  Raises Damaged."""
        folder = self.folder(stage.__name__, key_of(stage, config, inputs))
        if not folder.exists():
            return None
        receipt = read_receipt(folder)
        artifact = restored(receipt, folder, get_type_hints(stage)["return"])
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
            verified = "verified against its receipt"
            if found is None and self.mirror and self._bring(name, key, PATIENCE_S if _resumes(stage) else 0.0):
                found, verified = self._as_found(stage, config, inputs), f"brought from {self.mirror.url}, {verified}"
            if found is not None:
                self._offer(name, key)
                return Obtained(name, found, True, time.monotonic() - started, verified, label)
            out = self._private(stage, key)
            with self._working(stage, key, out):
                built = run(stage, config, *inputs, out=out, runtime=runtime)
            receipt = _receipt(stage, config, inputs, key, built, out, time.monotonic() - started)
            sealed = self._seal(built, receipt, out)
            # What a broken pull has left; the mirror gets what was built instead.
            shutil.rmtree(self.root / name / f".{key}.pulling", ignore_errors=True)
            self._offer(name, key)
        return Obtained(name, sealed, False, time.monotonic() - started, why, label)

    def bring(self, stage: str, key: str) -> bool:
        """Take a sealed folder from the mirror where it is not here; whether it is here now."""
        with self._held(stage, key):
            return self._bring(stage, key, 0.0)

    def _bring(self, stage: str, key: str, patience_s: float) -> bool:
        """The same for whoever holds the key; the receipt comes last."""
        folder, into = self.folder(stage, key), self.root / stage / f".{key}.pulling"
        if folder.exists() or self.mirror is None:
            return folder.exists()
        into.mkdir(parents=True, exist_ok=True, mode=0o700)
        receipt = self.mirror.pull(stage, key, into, patience_s)
        if receipt is None:
            # Else the files that did come are kept: the next pull goes on from them.
            with contextlib.suppress(OSError):
                into.rmdir()
            return False
        publish(into, receipt, folder)
        return True

    def _as_found(self, stage: Callable[..., A], config: Frozen, inputs: tuple[Artifact, ...]) -> A | None:
        """What was brought, verified as any hit is; removed again where it does not hold."""
        try:
            return self.find(stage, config, *inputs)
        except Damaged:
            shutil.rmtree(self.folder(stage.__name__, key_of(stage, config, inputs)))
            return None

    def _offer(self, stage: str, key: str) -> None:
        if self.mirror is not None:
            self.mirror.offer(self.folder(stage, key))

    def _working(self, stage: Callable[..., Any], key: str, out: Path) -> contextlib.AbstractContextManager[None]:
        if self.mirror is None or not _resumes(stage):
            return contextlib.nullcontext()
        return self.mirror.working(stage.__name__, key, out, PATIENCE_S)

    def _private(self, stage: Callable[..., Any], key: str) -> Path:
        """The folder to fill: empty, or as an earlier attempt left it where the stage RESUMES."""
        out = self.building(stage.__name__, key)
        if not _resumes(stage):
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        return out

    def _seal(self, built: A, receipt: Receipt, out: Path) -> A:
        """Make `out` durable, then visible under its key; the receipt is written last."""
        folder = self.folder(receipt.stage, receipt.key)
        publish(out, receipt.model_dump_json(indent=1).encode(), folder)
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


def _resumes(stage: Callable[..., Any]) -> bool:
    return bool(getattr(sys.modules[stage.__module__], "RESUMES", False))


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
    spent = (
        child.Usage.model_validate_json(usage.read_text())
        if usage.exists()
        else child.Usage(seconds=0, peak_rss_bytes=0)
    )
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
        peak_rss_bytes=spent.peak_rss_bytes,
        peak_gpu_bytes=spent.peak_gpu_bytes,
        machine=machine_kind(),
    )


__all__ = ["RECEIPT", "Mirror", "Obtained", "Receipt", "Store", "fsync", "key_of", "read_receipt", "verify_folder"]
