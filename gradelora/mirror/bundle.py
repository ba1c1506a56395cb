"""A folder in the mirror that is whole or not there: its manifest goes up last and comes off first.

A manifest is a JSON file that lists every other file with size and sha256: the receipt of an
artifact, the manifest of a checkpoint.  A reader believes a bundle whose files all match.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gradelora.artifacts import FileEntry, sha256_file
from gradelora.errors import Damaged
from gradelora.mirror.journal import Journal
from gradelora.mirror.remote import Remote


def push(
    remote: Remote,
    folder: Path,
    prefix: str,
    entries: Sequence[FileEntry],
    manifest: str,
    journal: Journal | None = None,
) -> int:
    """Send the files of `entries`, then the manifest; the number of bytes sent.

    A push with a journal goes on behind the files that an earlier one has sent and that are still there.
    Raises FileNotFoundError where a file is gone, Damaged where it has another size than its entry.
    """
    remote.remove([f"{prefix}/{manifest}"])
    sent = 0
    for entry in entries:
        size = (folder / entry.name).stat().st_size
        if size != entry.size:
            raise Damaged(f"{folder / entry.name}: {size} bytes, {entry.size} in {manifest}; not mirrored")
        name = f"{prefix}/{entry.name}"
        if journal is not None and entry in journal and remote.size(name) == size:
            continue
        remote.send(folder / entry.name, name)
        sent += size
        if journal is not None:
            journal.add(entry)
    remote.send(folder / manifest, f"{prefix}/{manifest}")
    if journal is not None:
        journal.close()
    return sent + (folder / manifest).stat().st_size


def pull(remote: Remote, prefix: str, into: Path, entries: Sequence[FileEntry]) -> None:
    """Bring the files of `entries`, each verified; those that are here already are kept.

    Raises Damaged naming the first file that is missing or differs from its entry.
    """
    refuse_escapes(prefix, [entry.name for entry in entries])
    for entry in entries:
        path = into / entry.name
        if _is(path, entry):
            continue
        if not remote.bring(f"{prefix}/{entry.name}", path):
            raise Damaged(f"{remote.url}/{prefix}/{entry.name}: missing")
        if not _is(path, entry):
            path.unlink()
            raise Damaged(f"{remote.url}/{prefix}/{entry.name}: differs from its size or sha256")
        if entry.mtime_ns:
            # Else a large artifact would be hashed again on every hit.
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def remove(remote: Remote, prefix: str, manifest: str) -> None:
    """Take a bundle out of the mirror; a removal cut short leaves no manifest, so nothing that looks whole."""
    rest = [name for name in remote.names(prefix) if name != f"{prefix}/{manifest}"]
    remote.remove([f"{prefix}/{manifest}", *rest])


def linked(folder: Path, private: Path) -> Path:
    """The same files under a private name, so that a folder that is deleted meanwhile can still be sent.

    Raises FileNotFoundError where it is being deleted already.  Where the file system has no
    hard links, the folder itself.
    """
    shutil.rmtree(private, ignore_errors=True)
    for where, _, files in os.walk(folder):
        target = private / Path(where).relative_to(folder)
        target.mkdir(parents=True, mode=0o700)
        for name in files:
            try:
                os.link(Path(where) / name, target / name)
            except FileNotFoundError:
                shutil.rmtree(private)
                raise
            except OSError:
                shutil.rmtree(private)
                return folder
    return private


def refuse_escapes(prefix: str, names: Sequence[str]) -> None:
    """Refuse a manifest with a name that would leave its folder.  Raises Damaged."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise Damaged(f"{prefix}: the file name {name!r} would leave its folder")


def _is(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and sha256_file(path) == entry.sha256
