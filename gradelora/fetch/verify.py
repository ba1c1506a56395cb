"""Every byte against the hash that the Hub announced; what fails is removed, so that it is fetched again.

A note of what was verified (size, time, sha256) makes the next fetch of the same bytes cheap.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gradelora.artifacts import FileEntry, Frozen, RemoteFile
from gradelora.errors import ChecksumMismatch
from gradelora.fetch.progress import spell_bytes
from gradelora.hub import RepoCache

# More readers than this only make a disk seek.
FILES_AT_ONCE = 2


class Verified(Frozen):
    """A blob as it was when its contents were right."""

    size: int
    mtime_ns: int
    sha256: str


_NOTES = TypeAdapter(dict[str, Verified])


class Verifier:
    """Checks the files of one commit in one cache; `deep` reads also what is noted as verified."""

    def __init__(self, cache: RepoCache, commit: str, *, deep: bool = False) -> None:
        self._cache = cache
        self._snapshot = cache.snapshot(commit)
        self._path = cache.notes / "verified.json"
        self._notes = {} if deep else self._read_notes()

    def drop_truncated(self, wanted: Sequence[RemoteFile]) -> None:
        """Remove cached files of a wrong size: the stock client takes them for whole."""
        for file in wanted:
            for path in (self._cache.blob(file), self._snapshot / file.name):
                if path.exists() and (size := path.stat().st_size) != file.size:
                    print(f"fetch: {file.name}: cached with {size} bytes instead of {file.size}; fetching it again")
                    self._remove(file)

    def verify(self, wanted: Sequence[RemoteFile]) -> list[FileEntry]:
        """The entries of all files, whose contents are right.

        Raises ChecksumMismatch naming those that are not, after removing them.
        """
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            found = list(pool.map(self._entry, wanted))
        wrong = [f for f, entry in zip(wanted, found, strict=True) if entry is None]
        for file in wrong:
            self._remove(file)
        entries = [e for e in found if e is not None]
        self._write_notes(wanted, found)
        if wrong:
            names = ", ".join(f.name for f in wrong[:3])
            size = spell_bytes(sum(f.size for f in wrong))
            raise ChecksumMismatch(
                f"{len(wrong)} files ({names}; {size}) have other contents than the Hub announced;"
                " they were removed and will be fetched again"
            )
        return entries

    def trust(self, file: RemoteFile) -> None:
        """Note a blob that was hashed as it was published: it need not be read again."""
        assert file.sha256 is not None, f"{file.name} has no sha256"
        stat = self._cache.blob(file).stat()
        self._notes[file.sha256] = Verified(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=file.sha256)

    def state(self, file: RemoteFile) -> str:
        """In words how a file is; nothing is removed."""
        path = self._snapshot / file.name
        if not path.exists():
            return "missing" if not path.is_symlink() else "missing: its link leads nowhere"
        return "ok" if self._entry(file) else "has other contents than the Hub announced"

    def _entry(self, file: RemoteFile) -> FileEntry | None:
        """The file's entry, or None where its contents are not those announced."""
        path = self._snapshot / file.name
        try:
            stat = path.stat()
            note = self._notes.get(file.sha256 or file.git_sha1)
            if note and (note.size, note.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return FileEntry(name=file.name, size=note.size, sha256=note.sha256, mtime_ns=note.mtime_ns)
            sha256, git_sha1 = _hashes(path, stat.st_size, with_git=file.sha256 is None)
        except FileNotFoundError:
            return None
        if stat.st_size != file.size or (sha256 != file.sha256 if file.sha256 else git_sha1 != file.git_sha1):
            return None
        return FileEntry(name=file.name, size=stat.st_size, sha256=sha256, mtime_ns=stat.st_mtime_ns)

    def _remove(self, file: RemoteFile) -> None:
        """Link and blob: with either left, the stock client would take the file for whole."""
        (self._snapshot / file.name).unlink(missing_ok=True)
        self._cache.blob(file).unlink(missing_ok=True)

    def _read_notes(self) -> dict[str, Verified]:
        try:
            return _NOTES.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return {}

    def _write_notes(self, wanted: Sequence[RemoteFile], found: Sequence[FileEntry | None]) -> None:
        notes = dict(self._notes)
        for file, entry in zip(wanted, found, strict=True):
            if entry is not None:
                note = Verified(size=entry.size, mtime_ns=entry.mtime_ns, sha256=entry.sha256)
                notes[file.sha256 or file.git_sha1] = note
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({k: v.model_dump() for k, v in sorted(notes.items())}, indent=1))
            part.replace(self._path)
        except OSError as error:
            print(f"fetch: {self._path}: {error.strerror}; the next fetch will hash all files again")


def _hashes(path: Path, size: int, *, with_git: bool) -> tuple[str, str]:
    """sha256 and, where asked for, the git blob id, in one reading of the file."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha256.update(chunk)
            if with_git:
                sha1.update(chunk)
    return sha256.hexdigest(), sha1.hexdigest()
