"""The Hub cache's layout for one repository, as huggingface_hub lays it out.

blobs/<etag>, snapshots/<commit>/<name> -> blob, refs/<revision>, trees/<commit>.json; below
`gradelora/` we note which commit a revision was resolved to and which blobs were verified.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gradelora.artifacts import RemoteFile
from gradelora.errors import BadConfig
from gradelora.hub.locks import is_locked

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Orphan:
    """A part that an earlier download left behind and nothing will go on with."""

    path: Path
    size: int


@dataclass(frozen=True)
class RepoCache:
    """One repository in a Hub cache."""

    cache: Path
    repo_id: str

    @property
    def folder(self) -> Path:
        """Holds all that is cached of the repository."""
        return self.cache / f"models--{self.repo_id.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """Contents by etag: sha256 of large files, git sha1 of small ones."""
        return self.folder / "blobs"

    @property
    def notes(self) -> Path:
        """Our own notes beside theirs."""
        return self.folder / "gradelora"

    @property
    def parts(self) -> Path:
        """Files on their way, and the journals of what is there of them."""
        return self.folder / "gradelora" / "parts"

    @property
    def lease(self) -> Path:
        """Locked by the process that downloads."""
        return self.notes / "fetch.lock"

    @property
    def busy(self) -> bool:
        """Whether a download goes on, ours or one of huggingface_hub's."""
        theirs = (self.cache / ".locks" / self.folder.name).glob("*.lock")
        return is_locked(self.lease) or any(is_locked(lock) for lock in theirs)

    def snapshot(self, commit: str) -> Path:
        """The files of a commit by name, as links to blobs."""
        return self.folder / "snapshots" / commit

    def blob(self, file: RemoteFile) -> Path:
        """Where the contents of a file lie."""
        return self.blobs / (file.sha256 or file.git_sha1)

    def holds(self, commit: str, file: RemoteFile) -> bool:
        """Whether the file is there, whole; without symbolic links it lies in the snapshot alone."""
        for path in (self.blob(file), self.snapshot(commit) / file.name):
            with contextlib.suppress(OSError):
                if path.stat().st_size == file.size:
                    return True
        return False

    def allocated_bytes(self, file: RemoteFile) -> int:
        """What a file on its way takes up on the disk already."""
        total = 0
        for suffix in ("part", "sparse"):
            with contextlib.suppress(FileNotFoundError):
                total += (self.parts / f"{file.sha256}.{suffix}").stat().st_blocks * 512
        return total

    def refuse_read_only(self, missing_bytes: int) -> None:
        """Raise BadConfig where the cache cannot be written."""
        existing = next(p for p in (self.blobs, *self.blobs.parents) if p.exists())
        if not os.access(existing, os.W_OK):
            raise BadConfig(
                f"{existing}: cannot be written, and {missing_bytes / 1e6:.1f} MB are missing;"
                " set HF_HUB_CACHE to a folder of yours"
            )

    def drop_leftovers(self, files: Iterable[RemoteFile]) -> None:
        """Forget the journals of files that are whole: a kill can come between rename and removal."""
        for file in files:
            for path in self.parts.glob(f"{file.sha256}.*") if file.sha256 else ():
                path.unlink(missing_ok=True)

    def note_commit(self, revision: str, commit: str) -> None:
        """Remember what a revision was resolved to, for the day without network.

        Not in refs/: other programs would follow it to a snapshot that is not there yet.
        """
        if COMMIT.fullmatch(revision):
            return
        # A repository folder without snapshots/ makes `hf cache ls` complain.
        (self.folder / "snapshots").mkdir(parents=True, exist_ok=True)
        _write(self.notes / "refs" / quote(revision, safe=""), commit)

    def publish_refs(self, commit: str) -> None:
        """Point refs/ to a commit that is whole now, for every revision resolved to it."""
        for note in sorted((self.notes / "refs").glob("*")):
            if note.read_text() == commit and "%" not in note.name and note.suffix != ".part":
                _write(self.folder / "refs" / note.name, commit)

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision was last resolved to, by us or by huggingface_hub."""
        if COMMIT.fullmatch(revision):
            return revision
        for path in (self.notes / "refs" / quote(revision, safe=""), self.folder / "refs" / revision):
            if path.is_file():
                return path.read_text().strip()
        return None

    def tree(self, commit: str) -> tuple[RemoteFile, ...] | None:
        """The listing that snapshot_download keeps, by name; None where there is none (format_version 1)."""
        try:
            listing = json.loads((self.folder / "trees" / f"{commit}.json").read_text(encoding="utf-8"))
            entries = listing["files"].items()
            files = [
                RemoteFile(name=n, size=e["size"], sha256=e.get("lfs_sha256"), git_sha1=e["blob_id"])
                for n, e in entries
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return tuple(sorted(files, key=lambda f: f.name))

    def orphans(self, wanted: Iterable[RemoteFile] = ()) -> Iterator[Orphan]:
        """Parts of stock downloads, with which huggingface_hub never goes on, and ours of files not `wanted`."""
        going_on = {file.sha256 for file in wanted}
        ours = [path for path in self.parts.glob("*") if path.name.partition(".")[0] not in going_on]
        for path in sorted([*self.blobs.glob("*.incomplete"), *ours]):
            yield Orphan(path, path.stat().st_size)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
