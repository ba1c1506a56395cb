"""New data: are the landed files other than those of the last run, and are they whole?

A look lists names, sizes and times; only what a look shows as changed is read and hashed.  The
fingerprint is over contents, so a touched file is no news.  Where the source is a URL, its files
are copied into a folder beside the store while they are hashed.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from gradelora.artifacts import Frozen, canonical_json, sha256_file, sha256_text
from gradelora.config import RunConfig
from gradelora.errors import BadConfig, BadData
from gradelora.records.source import SUFFIXES
from gradelora.store import Store, fsync

COPIES, STATES = "landed", "landing"
# As long as the trigger counts further events to the run that it started; see prefect.yaml.
TRIGGER_WINDOW_S = 60.0
_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*(::|://)")


class LandedFile(Frozen):
    """One file: its name below the source's folder, what a look shows of it, its contents."""

    name: str
    mark: str
    sha256: str


class Seen(Frozen):
    """What the server was last told of; `accepted` is POSIX seconds of its clock when it took the event.

    Until a run has come of it (`answered`) the event may have been lost, and is sent again.
    """

    fingerprint: str = ""
    accepted: float = 0.0
    answered: bool = False
    files: tuple[LandedFile, ...] = ()


class News(Frozen):
    """Whole data of which no run has come yet."""

    fingerprint: str
    files: tuple[LandedFile, ...]


class Quiet(Frozen):
    """No news, and why."""

    why: str


@dataclass(frozen=True)
class Look:
    """A listing: `marks` change whenever a file does, `paths` are the file system's own."""

    marks: Mapping[str, str]
    paths: Mapping[str, str]


class Landing:
    """The landed files of one configuration.

    `source` is an fsspec URL such as s3://bucket/answers/*.json, copied into `copies`; empty, the
    configuration's own data.files are watched where they lie.
    """

    def __init__(self, run: RunConfig, source: str = "") -> None:
        root = Store(run.store.root).root
        self.copies = root / COPIES / run.name if source else None
        self._patterns = (source,) if source else run.data.files
        self._state = root / STATES / f"{run.name}.json"
        self._state.parent.mkdir(exist_ok=True, mode=0o700)

    def examine(self, settle_s: float, sleep: Callable[[float], None] = time.sleep) -> News | Quiet:
        """Two equal looks, `settle_s` apart, at contents of which no run has come yet; else why not.

        Raises BadData for a name that would leave its folder, OSError where the source cannot be read.
        """
        seen, first = self.seen(), look(self._patterns)
        known = {f.name: f for f in seen.files}
        if not first.marks:
            return Quiet(why=f"{' '.join(self._patterns)}: no file has landed")
        unchanged = first.marks == {n: f.mark for n, f in known.items()} and self._copied(seen.files)
        if unchanged and seen.answered:
            return Quiet(why=f"{len(known)} files, unchanged")
        sleep(settle_s)
        if open_for_writing(first.paths.values()) or look(self._patterns).marks != first.marks:
            return Quiet(why="files are still being written; the next look decides")
        if self.copies is not None:
            shutil.rmtree(self._arrived("."), ignore_errors=True)
        files = tuple(self._read(first, name, known.get(name)) for name in sorted(first.marks))
        if look(self._patterns).marks != first.marks:
            return Quiet(why="files changed while they were read; the next look decides")
        fingerprint = sha256_text(canonical_json([[f.name, f.sha256] for f in files]))
        if fingerprint == seen.fingerprint and seen.answered:
            # Copies that somebody removed are back with this.
            self.take(News(fingerprint=fingerprint, files=files))
            self._write(seen.model_copy(update={"files": files}))
            return Quiet(why=f"{len(files)} files, touched but of the same contents")
        if time.time() - seen.accepted < TRIGGER_WINDOW_S:
            return Quiet(why=f"an event was sent less than {TRIGGER_WINDOW_S:.0f} s ago; the next look decides")
        return News(fingerprint=fingerprint, files=files)

    def take(self, news: News) -> None:
        """Put copied files in their place and remove those that are gone from the source; nothing where none are."""
        if self.copies is None:
            return
        names = {f.name for f in news.files}
        for file in news.files:
            arrived = self._arrived(file.name)
            if arrived.exists():
                place = self.copies / file.name
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                arrived.replace(place)
        for path in [p for p in self.copies.rglob("*") if p.is_file()]:
            if path.relative_to(self.copies).as_posix() not in names:
                path.unlink()

    def told(self, news: News, accepted: float) -> None:
        """Remember what the server was told of, and when; a later look asks what came of it."""
        self._write(Seen(fingerprint=news.fingerprint, accepted=accepted, files=news.files))

    def answered(self) -> None:
        """A run has come of the event, so no later look tells of these contents again."""
        self._write(self.seen().model_copy(update={"answered": True}))

    def seen(self) -> Seen:
        """What was last told; nothing at first, and where the record cannot be read: told twice, not never."""
        with contextlib.suppress(FileNotFoundError, ValidationError, UnicodeDecodeError):
            return Seen.model_validate_json(self._state.read_text(encoding="utf-8"))
        return Seen()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One look at a time.  Raises BadConfig where another one is at work."""
        with self._state.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadConfig(f"{self._state.stem}: another look at its data is under way; wait for it") from error
            yield

    def _read(self, seen: Look, name: str, known: LandedFile | None) -> LandedFile:
        """One file with its hash; a mark that is known spares reading it."""
        mark, path = seen.marks[name], seen.paths[name]
        if known is not None and known.mark == mark and self._copied((known,)):
            return known
        if self.copies is None:
            return LandedFile(name=name, mark=mark, sha256=sha256_file(Path(path)))
        arrived = self._arrived(name)
        arrived.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        system, _ = file_system(self._patterns[0])
        with system.open(path, "rb") as source, arrived.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**22)
        fsync(arrived)
        return LandedFile(name=name, mark=mark, sha256=sha256_file(arrived))

    def _arrived(self, name: str) -> Path:
        """Where a copy waits until all are whole."""
        assert self.copies is not None
        return self.copies.with_name(f".{self.copies.name}.arriving") / name

    def _copied(self, files: Sequence[LandedFile]) -> bool:
        return self.copies is None or all((self.copies / f.name).is_file() for f in files)

    def _write(self, seen: Seen) -> None:
        part = self._state.with_suffix(".part")
        part.write_text(seen.model_dump_json(indent=1), encoding="utf-8")
        fsync(part)
        part.replace(self._state)
        fsync(self._state.parent)


def look(patterns: Sequence[str]) -> Look:
    """List what the patterns name now; nothing is read."""
    found: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        system, path = file_system(pattern)
        # A listing that the client remembers shows nothing new.
        system.invalidate_cache()
        if any(c in path for c in "*?["):
            listed = system.glob(path, detail=True)
        elif system.isdir(path):
            listed = system.find(path, detail=True)
        else:
            listed = {path: system.info(path)} if system.exists(path) else {}
        found |= {p: i for p, i in listed.items() if i["type"] == "file" and _counts(p)}
    if not found:
        return Look({}, {})
    folder = os.path.commonpath([PurePosixPath(p).parent for p in found])
    names = {_below(folder, p): p for p in found}
    return Look({n: sha256_text(repr(sorted(found[p].items()))) for n, p in names.items()}, names)


def file_system(pattern: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path on it.  Raises BadConfig for one without a client."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(pattern if _REMOTE.match(pattern) else os.path.abspath(pattern))  # noqa: PTH100
    except (ImportError, ValueError) as error:
        raise BadConfig(f"{pattern}: {error}; use a path or a URL that fsspec knows") from error
    return system, path


def _counts(path: str) -> bool:
    """Hidden files are uploads in progress (rsync, sftp); other kinds are no data."""
    return not PurePosixPath(path).name.startswith(".") and path.endswith(SUFFIXES)


def _below(folder: str, path: str) -> str:
    """The name of a file below the common folder.  Raises BadData for one that would leave it."""
    name = PurePosixPath(path).relative_to(folder)
    if ".." in name.parts or name.is_absolute():
        raise BadData(f"{path}: a name that leaves its folder; rename it")
    return name.as_posix()


def open_for_writing(paths: Iterable[str]) -> bool:
    """Whether a process of this machine that we may look at has one of these files open for writing (proc(5))."""
    wanted = {os.path.realpath(p) for p in paths}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            if str(link.readlink()) in wanted:
                info = (link.parent.parent / "fdinfo" / link.name).read_text()
                flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
                if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                    return True
    return False
