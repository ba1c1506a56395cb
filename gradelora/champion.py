"""The champion of a deployment: which adapter is in use, how it came to be, and the way back.

`<store root>/champions/<name>.json` keeps every promotion, every step back and every refusal.  It is replaced
as a whole, so a reader sees the old state or the new one, and locked while it is changed.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from gradelora.artifacts import Adapter, EvalReport, Frozen
from gradelora.errors import BadConfig, Damaged
from gradelora.store import fsync

FOLDER = "champions"


class Champion(Frozen):
    """One promotion: the adapter, the evaluation that it passed, and who was champion before.

    `data_key` is the key of the encoded data in the store, which say how its prompts are made; empty
    where an earlier version wrote the record.  `previous` is a place in Champions.promotions, None
    for the base.  `promoted` is UTC.
    """

    adapter: Adapter
    report: EvalReport
    data_digest: str
    data_key: str = ""
    reason: str
    promoted: str
    previous: int | None


class Event(Frozen):
    """One change of champion; `champion` is the place of the new one, None for the base."""

    what: Literal["promoted", "rolled back"]
    champion: int | None
    when: str


class Refusal(Frozen):
    """An adapter that the gate did not let pass; it stays in the store."""

    adapter: Adapter
    report: EvalReport
    data_digest: str
    reason: str
    refused: str


class Champions(Frozen):
    """Everything that one deployment's file says."""

    current: int | None = None
    promotions: tuple[Champion, ...] = ()
    log: tuple[Event, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def champion(self) -> Champion | None:
        """The one in use; None means the base."""
        return None if self.current is None else self.promotions[self.current]

    def rolled_back(self, digest: str) -> str:
        """When that adapter was stepped back from, if it was not promoted since; else empty."""
        in_use: int | None = None
        found: dict[str, str] = {}
        for event in self.log:
            if event.what == "rolled back" and in_use is not None:
                found[self.promotions[in_use].adapter.digest] = event.when
            elif event.champion is not None:
                found.pop(self.promotions[event.champion].adapter.digest, None)
            in_use = event.champion
        return found.get(digest, "")


class ChampionChanged(Exception):
    """Another run has changed the record since it was read; judge again."""


def read_champions(root: Path, name: str) -> Champions:
    """Of the deployment `name`; empty where nothing was ever promoted.  Raises Damaged."""
    file = _file(root, name)
    try:
        return Champions.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Champions()
    except (ValidationError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{file}: is no record of champions; restore it from a backup, or remove it to begin anew"
        ) from error


def champion_of(root: Path, name: str) -> Champion | None:
    """The champion in use; None means the base."""
    return read_champions(root, name).champion


def promote(
    root: Path,
    name: str,
    *,
    adapter: Adapter,
    report: EvalReport,
    data_digest: str,
    reason: str,
    data_key: str = "",
    since: Champions | None = None,
) -> Champion:
    """Make `adapter` the champion; nothing changes where it is the champion already.

    Raises ChampionChanged where the log is no longer that of `since`, the record that it was judged against.
    """
    with _held(root, name):
        before = read_champions(root, name)
        if since is not None and before.log != since.log:
            raise ChampionChanged
        if before.champion is not None and before.champion.adapter.digest == adapter.digest:
            return before.champion
        now = _now()
        champion = Champion(
            adapter=adapter,
            report=report,
            data_digest=data_digest,
            data_key=data_key,
            reason=reason,
            promoted=now,
            previous=before.current,
        )
        place = len(before.promotions)
        after = before.model_copy(
            update={
                "current": place,
                "promotions": (*before.promotions, champion),
                "log": (*before.log, Event(what="promoted", champion=place, when=now)),
            }
        )
        _write(_file(root, name), after)
    return champion


def refuse(root: Path, name: str, *, adapter: Adapter, report: EvalReport, data_digest: str, reason: str) -> None:
    """Keep the adapter's refusal with its reason; nothing changes where it was refused like this before."""
    with _held(root, name):
        before = read_champions(root, name)
        if any((r.adapter.digest, r.reason) == (adapter.digest, reason) for r in before.refusals):
            return
        refusal = Refusal(adapter=adapter, report=report, data_digest=data_digest, reason=reason, refused=_now())
        _write(_file(root, name), before.model_copy(update={"refusals": (*before.refusals, refusal)}))


def rollback(root: Path, name: str) -> Champion | None:
    """Go back to who was champion before the present one; None means the base.

    Raises BadConfig where the base is in use already.
    """
    with _held(root, name):
        before = read_champions(root, name)
        if before.champion is None:
            raise BadConfig(f"{name}: the base is in use, there is no champion to roll back; see {_file(root, name)}")
        place = before.champion.previous
        event = Event(what="rolled back", champion=place, when=_now())
        after = before.model_copy(update={"current": place, "log": (*before.log, event)})
        _write(_file(root, name), after)
    return after.champion


def restore(root: Path, name: str, champions: Champions) -> None:
    """Take over a record that another machine has kept, as a whole."""
    with _held(root, name):
        _write(_file(root, name), champions)


def _file(root: Path, name: str) -> Path:
    if not name or Path(name).name != name:
        raise BadConfig(f"{name!r} is no deployment's name; give the name of the run configuration")
    return root / FOLDER / f"{name}.json"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextlib.contextmanager
def _held(root: Path, name: str) -> Iterator[None]:
    """One change at a time; the kernel frees the lock when its holder dies."""
    file = _file(root, name)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.with_name(f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, champions: Champions) -> None:
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as sink:
        sink.write(champions.model_dump_json(indent=1) + "\n")
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(file)
    fsync(file.parent)
