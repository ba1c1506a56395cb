"""What is sealed of a merge, by shard: in its own folder, and in those of merges of the same weights.

Settings of the verification are part of an artifact's key, not of its weights: a merge that is
judged anew takes over the shards of the one before instead of writing them again.
"""

import contextlib
import os
import threading
from pathlib import Path

from gradelora.artifacts import ASIDE, Frozen
from gradelora.merge.checkpoint import Shard
from gradelora.merge.regions import Survival
from gradelora.receipt import fsync
from gradelora.store import kin

JOURNAL = "sealed.jsonl"


class Entry(Frozen):
    """One line of the journal: a shard as it was when it was sealed."""

    name: str
    size: int
    mtime_ns: int
    sha256: str
    survivals: tuple[Survival, ...] = ()

    def lies_in(self, folder: Path) -> bool:
        """Whether the shard is there in full, and untouched since."""
        try:
            stat = (folder / self.name).stat()
        except FileNotFoundError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)


class Journal:
    """The sealed shards of one merge in `out`, one JSON line each; another merge's journal is dropped."""

    def __init__(self, out: Path, identity: str) -> None:
        self._out, self._path, self._lock = out, out / ASIDE / JOURNAL, threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._entries = entries_in(out, identity)
        text = "".join(f"{line}\n" for line in [identity, *(e.model_dump_json() for e in self._entries.values())])
        part = self._path.with_suffix(".part")
        write_durably(part, text)
        part.replace(self._path)
        fsync(self._path.parent)
        self._take_over(identity)

    def sealed(self, shard: Shard) -> bool:
        """Whether a shard is there in full."""
        entry = self._entries.get(shard.name)
        return entry is not None and entry.size == shard.size and entry.lies_in(self._out)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def add(self, entry: Entry) -> None:
        """Record one sealed shard.

        Not flushed: a power cut that takes the line leaves a whole shard, which is read again.
        """
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(f"{entry.model_dump_json()}\n")
            self._entries[entry.name] = entry

    def forget(self) -> None:
        """Remove the shards: they are to be made otherwise."""
        for name in self._entries:
            (self._out / name).unlink(missing_ok=True)
        self._entries.clear()

    def _take_over(self, identity: str) -> None:
        """Link to shards that other merges of these weights have sealed; they are never written again in place."""
        for folder in kin(self._out):
            for entry in entries_in(folder, identity).values():
                # Removed meanwhile, or a file system without links: the shard is made here.
                with contextlib.suppress(OSError):
                    if entry.lies_in(folder) and not (self._out / entry.name).exists():
                        os.link(folder / entry.name, self._out / entry.name)
                        (self._out / f"{entry.name}.part").unlink(missing_ok=True)
                        self.add(entry)


def entries_in(folder: Path, identity: str) -> dict[str, Entry]:
    """The journal of a folder by shard; empty for one of another identity."""
    path = folder / ASIDE / JOURNAL
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    entries = {}
    for line in lines[1:] if lines[:1] == [identity] else ():
        # A torn last line is a shard whose seal was not yet recorded.
        with contextlib.suppress(ValueError):
            entry = Entry.model_validate_json(line)
            entries[entry.name] = entry
    return entries


def is_whole(out: Path, shard: Shard) -> bool:
    """Whether a shard has its own name, which it gets when it was flushed; its line may be missing yet."""
    path = out / shard.name
    return path.exists() and path.stat().st_size == shard.size


def held_bytes(out: Path, identity: str) -> int:
    """What a merge into `out` need not find room for: whole shards here or to be taken over, and its parts."""
    whole = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    for folder in kin(out):
        whole |= {e.name: e.size for e in entries_in(folder, identity).values() if e.lies_in(folder)}
    return sum(whole.values()) + part_bytes(out)


def part_bytes(out: Path) -> int:
    """What half-written shards take up: each is begun anew, in its own place."""
    return sum(part.stat().st_blocks * 512 for part in out.glob("*.safetensors.part"))


def write_durably(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    path.write_text(text, encoding="utf-8")
    fsync(path)
