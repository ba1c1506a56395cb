"""What a store holds: sealed artifacts and unfinished ones."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from gradelora.artifacts import ASIDE
from gradelora.cache.entries import Entry, locked, size_under, spell_time
from gradelora.champion import FOLDER, read_champions
from gradelora.errors import Damaged
from gradelora.hub.locks import is_locked
from gradelora.store import RECEIPT, Receipt, Store, read_receipt

BUILDING = ".building"
SHOWN_KEY = 12


class Holdings:
    """One store's folders, and what is needed of them and of the Hub cache."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._receipts: dict[Path, Receipt | None] = {}
        for folder in Store(self.root).folders() if self.root.is_dir() else ():
            try:
                self._receipts[folder] = read_receipt(folder)
            except Damaged:
                self._receipts[folder] = None
        self._champions = _champions(self.root)
        self._refused = _refused(self.root)
        self._running = {folder: _mentions(folder) for folder in _building(self.root) if is_locked(_lock(folder))}

    def entries(self) -> Iterator[Entry]:
        """Every sealed folder, then those that are being built or were given up."""
        for folder, receipt in self._receipts.items():
            users, fixed = self.users(receipt.digest, str(folder)) if receipt else ((), False)
            yield Entry(
                name=f"{folder.parent.name}/{folder.name[:SHOWN_KEY]}",
                kind="artifact",
                path=folder,
                size_bytes=size_under(folder),
                last_used=_last_used(folder / RECEIPT, folder),
                needed_by=users,
                locked=fixed,
            )
        for folder in _building(self.root):
            running = folder in self._running
            stage = folder.parent.name
            goes_on = ("the next run, which goes on from it",) if _resumes(stage) else ()
            yield Entry(
                name=f"{stage}/{_key(folder)[:SHOWN_KEY]}{BUILDING}",
                kind="unfinished",
                path=folder,
                size_bytes=size_under(folder),
                last_used=_last_used(folder, folder),
                needed_by=("a run in progress",) if running else goes_on,
                locked=running,
            )

    def users(self, digest: str, path: str) -> tuple[tuple[str, ...], bool]:
        """In words what needs the artifact, and whether a champion or a run in progress does."""
        fixed = [f"the champion of {name}" for name, digests in self._champions.items() if digest in digests]
        fixed += [f"{_spell(f)}, a run in progress" for f, text in self._running.items() if path in text]
        refused = [f"the refusal of {name}" for name, digests in self._refused.items() if digest in digests]
        sealed = [_spell(f) for f, r in self._receipts.items() if r is not None and digest in r.inputs.values()]
        # What a run has sealed already and will read later is written nowhere yet.
        others = [f"perhaps {_spell(f)}, a run in progress" for f in self._running] if not fixed else []
        return (*fixed, *refused, *sealed, *others), bool(fixed)

    def users_of_snapshot(self, repo_id: str, commit: str) -> tuple[tuple[str, ...], bool]:
        """The same for a commit in the Hub cache: whoever needs an artifact that lies there."""
        found: dict[str, None] = {}
        fixed = False
        for receipt in self._receipts.values():
            if receipt is not None and _describes(receipt, repo_id, commit):
                users, held = self.users(receipt.digest, receipt.artifact["path"])
                found.update(dict.fromkeys(users))
                fixed = fixed or held
        for folder, text in self._running.items():
            if commit in text:
                found[f"{_spell(folder)}, a run in progress"] = None
                fixed = True
        return tuple(found), fixed


def remove(entry: Entry) -> None:
    """Remove a sealed or unfinished folder.  Raises BadConfig where a run is working on it."""
    folder = entry.path
    with locked(_lock(folder), entry.name):
        # Out of sight first: what is half removed must not look sealed.
        gone = folder.with_name(f".{_key(folder)}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def _champions(root: Path) -> dict[str, set[str]]:
    """By deployment: digests of the champion's adapter and report, and of those that it can be rolled back to."""
    found: dict[str, set[str]] = {}
    for file in sorted((root / FOLDER).glob("*.json")):
        champions = read_champions(root, file.stem)
        place, digests = champions.current, set()
        while place is not None:
            champion = champions.promotions[place]
            digests |= {champion.adapter.digest, champion.report.digest}
            place = champion.previous
        found[file.stem] = digests
    return found


def _refused(root: Path) -> dict[str, set[str]]:
    """By deployment: digests of refused adapters and their reports, kept until they are named."""
    files = sorted((root / FOLDER).glob("*.json"))
    refusals = {file.stem: read_champions(root, file.stem).refusals for file in files}
    return {name: {a.digest for r in kept for a in (r.adapter, r.report)} for name, kept in refusals.items()}


def _describes(receipt: Receipt, repo_id: str, commit: str) -> bool:
    """Whether the artifact is a snapshot of that commit; an adapter names a commit, too, and lies elsewhere."""
    artifact = receipt.artifact
    return receipt.stage == "fetch" and (artifact.get("repo_id"), artifact.get("commit")) == (repo_id, commit)


def _building(root: Path) -> list[Path]:
    return sorted(root.glob(f"*/.*{BUILDING}"))


def _mentions(folder: Path) -> str:
    """What the stage was asked to read: the requests of its child process and of its ranks."""
    return "".join(p.read_text(errors="replace") for p in sorted((folder / ASIDE).glob("*.json")))


def _resumes(stage: str) -> bool:
    try:
        return bool(getattr(importlib.import_module(f"gradelora.{stage}"), "RESUMES", False))
    except ImportError:
        return False


def _key(folder: Path) -> str:
    return folder.name.removeprefix(".").removesuffix(BUILDING)


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{_key(folder)}.lock")


def _spell(folder: Path) -> str:
    return f"{folder.parent.name}/{_key(folder)[:SHOWN_KEY]}"


def _last_used(read: Path, folder: Path) -> str:
    """Every hit reads the receipt; most file systems note that once a day at least (relatime)."""
    path = read if read.exists() else folder
    stat = path.stat()
    return spell_time(max(stat.st_atime, stat.st_mtime))
