"""Sealed artifacts in the mirror: `artifacts/<stage>/<key>/`, the receipt last."""

import json
from pathlib import Path

from pydantic import ValidationError

from gradelora.artifacts import ASIDE, FileEntry
from gradelora.errors import Damaged
from gradelora.mirror import bundle
from gradelora.mirror.journal import Journal
from gradelora.mirror.remote import Remote
from gradelora.receipt import RECEIPT

FOLDER = "artifacts"


def prefix_of(stage: str, key: str) -> str:
    """Where an artifact lies in the mirror."""
    return f"{FOLDER}/{stage}/{key}"


def is_mirrored_kind(receipt: bytes) -> bool:
    """Whether the files lie beside the receipt; those of a base snapshot are the Hub cache's."""
    return str(json.loads(receipt)["artifact"]["path"]) == "."


def push(remote: Remote, folder: Path, *, replace: bool = False) -> int:
    """Send a sealed folder of the store; the bytes sent, 0 where the mirror has the same contents.

    One that was cut off goes on behind the files that are up.  `replace` sends everything whatever
    the mirror says: its copy was found damaged.
    """
    receipt, prefix = (folder / RECEIPT).read_bytes(), prefix_of(folder.parent.name, folder.name)
    if not is_mirrored_kind(receipt):
        return 0
    if not replace and _digest(remote.read(f"{prefix}/{RECEIPT}")) == _digest(receipt):
        return 0
    entries = entries_of(receipt, str(folder / RECEIPT))
    sent = folder.with_name(f".{folder.name}.sent")
    if replace:
        sent.unlink(missing_ok=True)
    journal = Journal(sent, f"{remote.url} {_digest(receipt)}")
    return bundle.push(remote, folder, prefix, (*entries, *_aside(folder)), RECEIPT, journal)


def pull(remote: Remote, stage: str, key: str, into: Path) -> bytes | None:
    """Bring an artifact's files into a private folder; its receipt, not yet written there, or None.

    Raises Damaged where the receipt is another one's or a file differs from it.
    """
    prefix = prefix_of(stage, key)
    where = f"{remote.url}/{prefix}/{RECEIPT}"
    receipt = remote.read(f"{prefix}/{RECEIPT}")
    if receipt is None:
        return None
    entries = entries_of(receipt, where)
    found = json.loads(receipt)
    if (found.get("stage"), found.get("key")) != (stage, key):
        raise Damaged(f"{where}: is the receipt of {found.get('stage')}/{found.get('key')}")
    bundle.pull(remote, prefix, into, entries)
    _bring_aside(remote, prefix, into)
    return receipt


def entries_of(manifest: bytes, where: str) -> tuple[FileEntry, ...]:
    """The files that a receipt lists.  Raises Damaged."""
    try:
        return tuple(FileEntry.model_validate(f) for f in json.loads(manifest)["artifact"]["files"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise Damaged(f"{where}: lists no files") from error


def _digest(receipt: bytes | None) -> str | None:
    """The artifact's identity; None for a receipt that is missing or unreadable."""
    try:
        return None if receipt is None else str(json.loads(receipt)["digest"])
    except (ValueError, KeyError, TypeError):
        return None


def _aside(folder: Path) -> tuple[FileEntry, ...]:
    """Logs, timings and pictures: kept beside the artifact, no part of it, so not hashed either."""
    paths = [path for path in sorted((folder / ASIDE).rglob("*")) if path.is_file()]
    return tuple(
        FileEntry(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256="") for path in paths
    )


def _bring_aside(remote: Remote, prefix: str, into: Path) -> None:
    names = [name.removeprefix(f"{prefix}/") for name in remote.names(f"{prefix}/{ASIDE}")]
    bundle.refuse_escapes(prefix, names)
    for name in names:
        remote.bring(f"{prefix}/{name}", into / name)
