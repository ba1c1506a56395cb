"""Sealed training checkpoints in the mirror: `checkpoints/<stage>/<key>/step-N/`, the manifest last.

A checkpoint is a folder `checkpoints/step-N` of an artifact that is being built, whole once it
has a manifest (gradelora.train.seals writes them).
"""

import json
import shutil
from pathlib import Path

from pydantic import ValidationError

from gradelora.artifacts import FileEntry
from gradelora.errors import Damaged
from gradelora.mirror import bundle
from gradelora.mirror.remote import Remote
from gradelora.receipt import flush

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
# As many as on the machine: the one before serves where the newest is damaged.
KEPT = 2


def prefix_of(stage: str, key: str) -> str:
    """Where the checkpoints of one artifact lie in the mirror."""
    return f"{FOLDER}/{stage}/{key}"


def newest_here(out: Path) -> int | None:
    """The newest sealed step in the folder that is being filled."""
    return max((_step(path.parent.name) for path in (out / FOLDER).glob(f"step-*/{MANIFEST}")), default=None)


def push(remote: Remote, stage: str, key: str, out: Path, step: int) -> int:
    """Send one sealed checkpoint, then remove those that it supersedes; the bytes sent.

    Raises FileNotFoundError where training has deleted it already: then a newer one is there.
    """
    private = out.with_name(f".{key}.uploading")
    folder = bundle.linked(out / FOLDER / f"step-{step}", private)
    try:
        manifest = (folder / MANIFEST).read_bytes()
        entries = _entries(manifest, str(folder / MANIFEST))
        sent = bundle.push(remote, folder, f"{prefix_of(stage, key)}/step-{step}", entries, MANIFEST)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    for old in steps(remote, stage, key)[KEPT:]:
        bundle.remove(remote, f"{prefix_of(stage, key)}/step-{old}", MANIFEST)
    return sent


def pull_newest(remote: Remote, stage: str, key: str, out: Path) -> tuple[int | None, list[str]]:
    """Bring the newest whole checkpoint where it is newer than what is here.

    Returns its step, or None, and what was found damaged on the way.
    """
    here, damaged = newest_here(out), []
    for step in steps(remote, stage, key):
        if here is not None and step <= here:
            break
        try:
            _pull(remote, f"{prefix_of(stage, key)}/step-{step}", out / FOLDER, step)
        except Damaged as damage:
            damaged.append(str(damage))
        else:
            return step, damaged
    return None, damaged


def steps(remote: Remote, stage: str, key: str) -> list[int]:
    """Steps with a manifest in the mirror, the newest first."""
    prefix = prefix_of(stage, key)
    folders = [name.removeprefix(f"{prefix}/").split("/") for name in remote.names(prefix)]
    return sorted((_step(parts[0]) for parts in folders if parts[1:] == [MANIFEST]), reverse=True)


def remove(remote: Remote, stage: str, key: str) -> None:
    """All checkpoints of one artifact: it is sealed and mirrored."""
    names = remote.names(prefix_of(stage, key))
    manifests = [name for name in names if name.endswith(f"/{MANIFEST}")]
    remote.remove([*manifests, *(name for name in names if name not in set(manifests))])


def _pull(remote: Remote, prefix: str, into: Path, step: int) -> None:
    manifest = remote.read(f"{prefix}/{MANIFEST}")
    if manifest is None:
        raise Damaged(f"{remote.url}/{prefix}: superseded while it was looked at")
    private, final = into / f".step-{step}.pulling", into / f"step-{step}"
    bundle.pull(remote, prefix, private, _entries(manifest, f"{remote.url}/{prefix}/{MANIFEST}"))
    (private / MANIFEST).write_bytes(manifest)
    flush(private)
    # What lies there has no manifest: a checkpoint that was never sealed.
    shutil.rmtree(final, ignore_errors=True)
    private.rename(final)


def _entries(manifest: bytes, where: str) -> tuple[FileEntry, ...]:
    try:
        return tuple(FileEntry.model_validate(f) for f in json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise Damaged(f"{where}: lists no files") from error


def _step(name: str) -> int:
    number = name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
