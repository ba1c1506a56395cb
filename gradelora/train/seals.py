"""Checkpoints that are either whole or not there: a manifest, written last, names every file.

`step-N/` is filled by all ranks; then rank 0 hashes the files and renames `manifest.json` into
place.  Only a folder whose manifest holds is resumed from; a damaged one falls back to the one before.
"""

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from gradelora.artifacts import FileEntry, Frozen, files_under
from gradelora.store import fsync
from gradelora.train.job import Origin

MANIFEST = "manifest.json"
REJECTED = "manifest.rejected.json"
FOLDER = "checkpoints"
TRAINER_STATE = "trainer_state.json"


class Manifest(Frozen):
    """What a checkpoint is and holds; `identity` is the run that may resume from it, `origin` spells that out.

    `universal`: DeepSpeed's optimizer states lie there by parameter, not by rank.
    """

    step: int
    world_size: int
    identity: str
    files: tuple[FileEntry, ...]
    origin: Origin | None = None
    universal: bool = False


class DamagedCheckpoint(UserWarning):
    """A checkpoint that cannot be used; the message names the file at fault."""


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of one step lies."""
    return root / f"step-{step}"


def seal(
    folder: Path,
    *,
    step: int,
    world_size: int,
    identity: str,
    origin: Origin | None = None,
    universal: bool = False,
    parts: Iterable[str] = (),
) -> None:
    """Flush every file, then write the manifest.  Call on rank 0 when all ranks have written.

    `parts` are names that must be in it: a network file system may open a file that it does not list yet.
    """
    (folder / REJECTED).unlink(missing_ok=True)
    listed = {entry.name: entry for entry in files_under(folder) if entry.name != MANIFEST}
    listed |= {name: FileEntry.of(folder / name, name) for name in parts if name not in listed}
    entries = tuple(listed[name] for name in sorted(listed))
    for entry in entries:
        fsync(folder / entry.name)
    manifest = Manifest(
        step=step, world_size=world_size, identity=identity, files=entries, origin=origin, universal=universal
    )
    part = folder / f"{MANIFEST}.part"
    part.write_text(manifest.model_dump_json())
    fsync(part)
    part.replace(folder / MANIFEST)
    for directory in [path for path in folder.rglob("*") if path.is_dir()]:
        fsync(directory)
    fsync(folder)
    fsync(folder.parent)


def read(folder: Path) -> Manifest:
    """The manifest of a sealed checkpoint.  Raises OSError or ValueError where it is missing or unreadable."""
    return Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))


def fault(folder: Path, *, world_size: int, identity: str) -> str | None:
    """Why this checkpoint cannot be resumed from, naming the file; None where it can."""
    try:
        manifest = read(folder)
    except (OSError, ValueError):
        return f"{folder / MANIFEST} is missing or unreadable"
    if manifest.identity != identity:
        return f"{folder / MANIFEST} belongs to another run"
    if manifest.world_size != world_size:
        return f"{folder / MANIFEST} was written by {manifest.world_size} processes, not {world_size}"
    for entry in manifest.files:
        path = folder / entry.name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry.size:
            return f"{path} holds {path.stat().st_size} bytes, not {entry.size}"
        if FileEntry.of(path, entry.name).sha256 != entry.sha256:
            return f"{path} differs from its hash"
    return None


def newest(root: Path, *, world_size: int, identity: str) -> Path | None:
    """The newest checkpoint that is whole; each newer one that is not is warned of (DamagedCheckpoint) and unsealed."""
    for folder in _by_step(root):
        why = fault(folder, world_size=world_size, identity=identity)
        if why is None:
            return folder
        warnings.warn(f"{why}: falling back to the checkpoint before {folder.name}", DamagedCheckpoint, stacklevel=2)
        # Else it would count among those that `prune` keeps, in place of one that is whole.
        if (folder / MANIFEST).is_file():
            (folder / MANIFEST).replace(folder / REJECTED)
    return None


def newest_step(root: Path) -> int | None:
    """The step of the newest checkpoint that has a manifest; its files are not looked at."""
    return next((_step(folder) for folder in _by_step(root) if (folder / MANIFEST).is_file()), None)


def prune(root: Path, keep: int) -> None:
    """Delete all but the `keep` newest sealed checkpoints, and what lies unsealed before them."""
    sealed = [folder for folder in _by_step(root) if (folder / MANIFEST).is_file()]
    if len(sealed) <= keep:
        return
    oldest_kept = _step(sealed[keep - 1])
    for folder in _by_step(root):
        if _step(folder) < oldest_kept:
            # Without its manifest first: a deletion cut short must not look whole.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _by_step(root: Path) -> list[Path]:
    found = [path for path in root.glob("step-*") if path.is_dir() and path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=_step, reverse=True)
