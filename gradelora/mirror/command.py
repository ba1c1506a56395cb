"""`gradelora mirror status|push|pull`: what the mirror holds, and both ways by hand."""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gradelora.artifacts import Frozen
from gradelora.champion import FOLDER as CHAMPIONS
from gradelora.champion import Champions, read_champions
from gradelora.config import RunConfig
from gradelora.errors import BadConfig, Damaged
from gradelora.mirror import Mirror, champions, checkpoints, mirror_of, sealed
from gradelora.receipt import RECEIPT, verify_folder
from gradelora.store import Store

SHOWN_KEY = 12
# Whether a person asked for the thing of this name: train/<whole key>, or a champion's.
Wanted = Callable[[str], bool]


class Row(Frozen):
    """One thing and where it is; `note` says what was done with it or what is wrong."""

    what: Literal["artifact", "checkpoint", "champion"]
    name: str
    here: bool
    there: bool
    note: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside --config, --set and --json."""
    actions = "look; send what the mirror lacks; bring what is not here"
    parser.add_argument("action", choices=("status", "push", "pull"), help=actions)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, e.g. train or train/0a1b2c3d4e5f")


def mirror_command(arguments: argparse.Namespace, run: RunConfig) -> int:
    """Do it and list what was found; 0, or 1 where something was damaged.  Raises MirrorUnreachable."""
    said: list[str] = []
    mirror = mirror_of(run.store, said.append)
    if mirror is None:
        raise BadConfig("store.mirror is not set; name an fsspec URL, e.g. --set store.mirror=s3://bucket/folder")
    # One clear error beats a list of things that failed.
    mirror.remote.names("champions")
    action = {"status": _look, "push": _push, "pull": _pull}[arguments.action]
    rows = action(mirror, Store(run.store.root), functools.partial(_wanted, arguments.names))
    if arguments.json:
        print(json.dumps([row.model_dump() for row in rows]))
    else:
        for row in rows:
            print(f"{row.what:10} {row.name:34} {_place(row):12} {row.note}".rstrip())
        print(f"{len(rows)} in {run.store.root} and {mirror.url}")
    return 1 if any(row.note.startswith("damaged") for row in rows) else 0


def _place(row: Row) -> str:
    return {(True, True): "both", (True, False): "here only", (False, True): "mirror only"}[row.here, row.there]


def _wanted(names: list[str], name: str) -> bool:
    return not names or any(name.startswith(one) for one in names)


def _only(artifacts: set[tuple[str, str]], wanted: Wanted) -> list[tuple[str, str]]:
    return sorted(each for each in artifacts if wanted("/".join(each)))


def _look(mirror: Mirror, store: Store, wanted: Wanted) -> list[Row]:
    here, there = _here(store), _there(mirror)
    rows = [_artifact(each, each in here, each in there) for each in _only(here | there, wanted)]
    for stage, key in _only(_trainings(mirror, store), wanted):
        remote = checkpoints.steps(mirror.remote, stage, key)[:1]
        local = checkpoints.newest_here(store.building(stage, key))
        for step in sorted({*remote, *([] if local is None else [local])}):
            name = f"{_short(stage, key)} step {step}"
            rows.append(Row(what="checkpoint", name=name, here=step == local, there=step in remote))
    names = {*champions.names(mirror.remote), *_champions(store)}
    return rows + [_champion(mirror, store, name) for name in sorted(filter(wanted, names))]


def _push(mirror: Mirror, store: Store, wanted: Wanted) -> list[Row]:
    rows = []
    for stage, key in _only(_here(store), wanted):
        try:
            verify_folder(store.folder(stage, key), deep=False)
            sent = sealed.push(mirror.remote, store.folder(stage, key))
            rows.append(_artifact((stage, key), True, True, f"{sent / 1e6:.1f} MB sent" if sent else "there already"))
        except Damaged as damage:
            rows.append(_artifact((stage, key), True, False, f"damaged: {damage}"))
    for stage, key in _only(_trainings(mirror, store), wanted):
        out = store.building(stage, key)
        step = checkpoints.newest_here(out)
        if step is not None and step not in checkpoints.steps(mirror.remote, stage, key):
            sent = checkpoints.push(mirror.remote, stage, key, out, step)
            name = f"{_short(stage, key)} step {step}"
            rows.append(Row(what="checkpoint", name=name, here=True, there=True, note=f"{sent / 1e6:.1f} MB sent"))
    for name in filter(wanted, _champions(store)):
        warning = champions.push(mirror.remote, store.root, name)
        rows.append(_champion(mirror, store, name, warning or ""))
    return rows


def _pull(mirror: Mirror, store: Store, wanted: Wanted) -> list[Row]:
    rows, mirrored = [], Store(store.root, Strict(mirror))
    for stage, key in _only(_there(mirror), wanted):
        if store.folder(stage, key).exists():
            rows.append(_artifact((stage, key), True, True, "here already"))
            continue
        try:
            mirrored.bring(stage, key)
            rows.append(_artifact((stage, key), True, True, "brought"))
        except Damaged as damage:
            rows.append(_artifact((stage, key), False, True, f"damaged: {damage}"))
    for name in filter(wanted, champions.names(mirror.remote)):
        _, warning = champions.pull(mirror.remote, store.root, name)
        rows.append(_champion(mirror, store, name, warning or ""))
    return rows


class Strict:
    """A mirror whose faults are errors, as a person who asks for it by name expects."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self.url = mirror, mirror.url
        self.offer, self.working = mirror.offer, mirror.working

    def pull(self, stage: str, key: str, into: Path, patience_s: float) -> bytes | None:  # noqa: ARG002
        """Raises Damaged and MirrorUnreachable."""
        return sealed.pull(self._mirror.remote, stage, key, into)


def _here(store: Store) -> set[tuple[str, str]]:
    """Stage and key of the sealed folders that are of a kind that is mirrored."""
    folders = [folder for folder in store.folders() if (folder / RECEIPT).exists()]
    return {(f.parent.name, f.name) for f in folders if sealed.is_mirrored_kind((f / RECEIPT).read_bytes())}


def _there(mirror: Mirror) -> set[tuple[str, str]]:
    names = [name.split("/") for name in mirror.remote.names(sealed.FOLDER)]
    return {(parts[1], parts[2]) for parts in names if parts[3:] == [RECEIPT]}


def _trainings(mirror: Mirror, store: Store) -> set[tuple[str, str]]:
    """Stage and key of what is being trained, by its sealed checkpoints on either side."""
    remote = [name.split("/") for name in mirror.remote.names(checkpoints.FOLDER)]
    there = {(parts[1], parts[2]) for parts in remote if parts[-1] == checkpoints.MANIFEST}
    local = store.root.glob(f"*/.*.building/{checkpoints.FOLDER}/step-*/{checkpoints.MANIFEST}")
    outs = {path.parents[2] for path in local}
    return there | {(out.parent.name, out.name.removeprefix(".").removesuffix(".building")) for out in outs}


def _champions(store: Store) -> list[str]:
    return sorted(path.stem for path in (store.root / CHAMPIONS).glob("*.json"))


def _artifact(artifact: tuple[str, str], here: bool, there: bool, note: str = "") -> Row:
    return Row(what="artifact", name=_short(*artifact), here=here, there=there, note=note)


def _champion(mirror: Mirror, store: Store, name: str, note: str = "") -> Row:
    there = champions.read(mirror.remote, store.root, name)
    here = read_champions(store.root, name)
    ahead = champions.continues(here, there), champions.continues(there, here)
    words = {(True, True): "", (True, False): "this store is ahead", (False, True): "the mirror is ahead"}
    note = note or words.get(ahead, "promoted apart")
    nothing = Champions()
    return Row(what="champion", name=name, here=here != nothing, there=there != nothing, note=note)


def _short(stage: str, key: str) -> str:
    return f"{stage}/{key[:SHOWN_KEY]}"
