"""Plain folders seen as repositories with commits.

`<root>/<owner>/<name>/` is the branch main, `<name>@<branch>/` another revision.  A commit id is
the sha1 of the names and contents, so it moves when a file changes.  What a commit held is kept
under `<root>/.commits/`: small files as copies, large ones as hard links (replace a large file,
do not rewrite it in place, or its old commits are lost).
"""

import hashlib
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

COPY_BELOW_BYTES = 64 * 2**20
LFS_FROM_BYTES = 10 * 2**20
LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".arrow", ".zip", ".gz"})
COMMITS = ".commits"


@dataclass(frozen=True)
class Blob:
    """One file of a commit.  `git_sha1` is of the contents, or of the LFS pointer."""

    name: str
    size: int
    sha256: str
    git_sha1: str
    lfs: bool

    @property
    def etag(self) -> str:
        """The name of the blob in a client's cache."""
        return self.sha256 if self.lfs else self.git_sha1


@dataclass(frozen=True)
class Commit:
    """Every file at one moment, by name."""

    id: str
    blobs: dict[str, Blob]


def git_sha1(size: int, contents: bytes) -> str:
    """The git blob id of `contents`."""
    return hashlib.sha1(b"blob %d\0" % size + contents).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file (git-lfs specification v1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Repositories:
    """All repositories below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock = threading.RLock()
        self._hashed: dict[tuple[Path, int, int], Blob] = {}

    def exists(self, repo_id: str) -> bool:
        """Whether there is a folder for it."""
        return _safe(repo_id) and repo_id.count("/") == 1 and (self.root / repo_id).is_dir()

    def folder(self, repo_id: str, branch: str = "main") -> Path:
        """Where the files of a branch lie."""
        return self.root / (repo_id if branch == "main" else f"{repo_id}@{branch}")

    def branches(self, repo_id: str) -> list[str]:
        """main first, then the others by name."""
        name = (self.root / repo_id).name
        others = (self.root / repo_id).parent.glob(f"{name}@*")
        return ["main", *sorted(p.name.removeprefix(f"{name}@") for p in others)]

    def commit(self, repo_id: str, revision: str) -> Commit | None:
        """The commit that a branch points to now, or a stored one by its id."""
        with self._lock:
            if revision in self.branches(repo_id):
                return self._take(repo_id, self.folder(repo_id, revision))
            # A commit is only on record once a client has seen it: take the branches of now.
            for branch in self.branches(repo_id):
                self._take(repo_id, self.folder(repo_id, branch))
            record = self.root / COMMITS / repo_id / f"{revision}.json"
            if not _safe(revision) or not record.is_file():
                return None
            blobs = [Blob(**b) for b in json.loads(record.read_text())]
            return Commit(revision, {b.name: b for b in blobs})

    def object(self, sha256: str) -> Path:
        """Where contents are kept that some commit holds."""
        return self.root / COMMITS / "objects" / sha256

    def _take(self, repo_id: str, folder: Path) -> Commit:
        """Record the folder as it is now."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        blobs = {p.relative_to(folder).as_posix(): self._blob(p, p.relative_to(folder).as_posix()) for p in paths}
        listing = "".join(f"{name}\0{blob.etag}\n" for name, blob in blobs.items())
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), blobs)
        record = self.root / COMMITS / repo_id / f"{commit.id}.json"
        if not record.exists():
            for name, blob in blobs.items():
                self._keep(folder / name, blob)
            record.parent.mkdir(parents=True, exist_ok=True)
            part = record.with_suffix(".part")
            part.write_text(json.dumps([asdict(b) for b in blobs.values()]))
            part.replace(record)
        return commit

    def _blob(self, path: Path, name: str) -> Blob:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashed:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            lfs = path.suffix in LFS_SUFFIXES or stat.st_size >= LFS_FROM_BYTES
            contents = lfs_pointer(sha256, stat.st_size) if lfs else path.read_bytes()
            self._hashed[key] = Blob(name, stat.st_size, sha256, git_sha1(len(contents), contents), lfs)
        return self._hashed[key]

    def _keep(self, path: Path, blob: Blob) -> None:
        target = self.object(blob.sha256)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.unlink(missing_ok=True)
        if blob.size < COPY_BELOW_BYTES:
            shutil.copyfile(path, part)
        else:
            os.link(path, part)
        part.replace(target)


def _safe(name: str) -> bool:
    """Whether a name from a URL stays below the folder that it is joined to."""
    return not any(part in ("", ".", "..") or part.startswith(".") or "\0" in part for part in name.split("/"))
