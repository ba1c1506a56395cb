"""The champion pointers in the mirror: `champions/<name>.json`, with places relative to a store.

A pointer's log only grows.  So of two records either one continues the other, and the longer one
holds, or two machines have promoted apart, and a person must choose.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from gradelora.artifacts import Artifact
from gradelora.champion import FOLDER, Champion, Champions, Refusal, read_champions, restore
from gradelora.errors import Damaged
from gradelora.mirror import sealed
from gradelora.mirror.remote import Remote
from gradelora.receipt import RECEIPT

A = TypeVar("A", bound=Artifact)
J = TypeVar("J", Champion, Refusal)


def push(remote: Remote, root: Path, name: str) -> str | None:
    """Send this store's record where it continues the mirror's; else what keeps it from it, or None.

    The champion's artifacts go first: the record must not name what is not there.
    """
    here, there = read_champions(root, name), read(remote, root, name)
    if continues(there, here):
        return None
    if not continues(here, there):
        return _apart(remote, name, here, there)
    for stage, key in needed(here):
        if (root / stage / key / RECEIPT).exists():
            sealed.push(remote, root / stage / key)
    text = _moved(here, Path()).model_dump_json(indent=1)
    remote.write(_file(name), f"{text}\n".encode())
    return None


def pull(remote: Remote, root: Path, name: str) -> tuple[Champions, str | None]:
    """Take the mirror's record where it continues this store's; what holds now, and a warning or None.

    Raises Damaged where one of them cannot be read.
    """
    here, there = read_champions(root, name), read(remote, root, name)
    if continues(here, there):
        return here, None
    if not continues(there, here):
        return here, _apart(remote, name, here, there)
    # What was refused here is known here alone.
    known = {(r.adapter.digest, r.reason) for r in there.refusals}
    mine = tuple(r for r in here.refusals if (r.adapter.digest, r.reason) not in known)
    both = there.model_copy(update={"refusals": there.refusals + mine})
    restore(root, name, both)
    return both, None


def read(remote: Remote, root: Path, name: str) -> Champions:
    """The mirror's record, its places moved below `root`; empty where there is none.  Raises Damaged."""
    content = remote.read(_file(name))
    if content is None:
        return Champions()
    try:
        return _moved(Champions.model_validate_json(content), root.absolute())
    except (ValidationError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{remote.url}/{_file(name)}: is no record of champions; remove it and push a good one"
        ) from error


def names(remote: Remote) -> list[str]:
    """Deployments with a record in the mirror."""
    return [Path(name).stem for name in remote.names(FOLDER) if name.endswith(".json")]


def needed(champions: Champions) -> list[tuple[str, str]]:
    """Stage and key of the champion's artifacts and of those that it can be rolled back to, the champion's first.

    The data that it was trained on come along: they say how its prompts are made, and which scores it knows.
    """
    found, place = [], champions.current
    while place is not None:
        champion = champions.promotions[place]
        found += [(a.path.parent.name, a.path.name) for a in (champion.adapter, champion.report)]
        found += [("encode", champion.data_key)] if champion.data_key else []
        place = champion.previous
    return found


def continues(longer: Champions, shorter: Champions) -> bool:
    """Whether the first record says all that the second says, and in the same order."""
    return longer.log[: len(shorter.log)] == shorter.log and _digests(longer)[: len(shorter.promotions)] == _digests(
        shorter
    )


def _digests(champions: Champions) -> list[str]:
    return [champion.adapter.digest for champion in champions.promotions]


def _apart(remote: Remote, name: str, here: Champions, there: Champions) -> str:
    newest = max(there.log[-1].when if there.log else "", here.log[-1].when if here.log else "")
    return (
        f"champion {name}: this store and {remote.url} have promoted apart (newest change {newest}); both stay as they "
        f"are; remove {_file(name)} from the one that shall give way"
    )


def _moved(champions: Champions, root: Path) -> Champions:
    """The same record for a store elsewhere: an artifact's place is its stage and key below the root."""
    return champions.model_copy(
        update={
            "promotions": tuple(_judged_moved(champion, root) for champion in champions.promotions),
            "refusals": tuple(_judged_moved(refusal, root) for refusal in champions.refusals),
        }
    )


def _judged_moved(judged: J, root: Path) -> J:
    return judged.model_copy(update={"adapter": _at(judged.adapter, root), "report": _at(judged.report, root)})


def _at(artifact: A, root: Path) -> A:
    return artifact.model_copy(update={"path": root / artifact.path.parent.name / artifact.path.name})


def _file(name: str) -> str:
    return f"{FOLDER}/{name}.json"
