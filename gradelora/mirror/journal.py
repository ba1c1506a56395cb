"""Which files of an artifact are in the mirror already: a merged model takes longer than a run's end."""

import contextlib
from pathlib import Path

from gradelora.artifacts import FileEntry


class Journal:
    """One JSON line a file, below the identity of what is sent where; another one's lines are dropped.

    No proof of anything: a reader believes a manifest and the sha256 of each file alone.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._entries = path, set[FileEntry]()
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if lines[:1] != [identity]:
            lines = [identity]
            path.write_text(f"{identity}\n", encoding="utf-8")
        for line in lines[1:]:
            # A torn line is a file that is sent again.
            with contextlib.suppress(ValueError):
                self._entries.add(FileEntry.model_validate_json(line))

    def __contains__(self, entry: FileEntry) -> bool:
        return entry in self._entries

    def add(self, entry: FileEntry) -> None:
        """Record one file that has arrived."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{entry.model_dump_json()}\n")
        self._entries.add(entry)

    def close(self) -> None:
        """The manifest is up: the journal is of no more use."""
        self.path.unlink(missing_ok=True)
