"""The folder that is handed over: weights, tokenizer, generation config, licence, model card."""

import filecmp
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gradelora.artifacts import Adapter, MergedModel, ModelSnapshot
from gradelora.errors import BadConfig
from gradelora.hub.names import CONFIG, INDEX, is_small_file
from gradelora.receipt import flush, fsync

CARD = "README.md"
# The base's own description would be taken for the adapter's.
LEFT_OUT = frozenset({CONFIG, INDEX, CARD})
# A link costs no space; a small file is copied, so that editing it leaves the sealed one as it was.
LINK_FROM_BYTES = 64 * 2**20


def assemble(folder: Path, weights: Adapter | MergedModel, snapshot: ModelSnapshot, card: str) -> list[str]:
    """Make `folder`, whole or not at all; returns the names in it.  Large files become hard links where they can.

    A folder of these very contents is left as it is.  Raises BadConfig where it holds anything else.
    """
    sources = {f.name: snapshot.path / f.name for f in snapshot.files if is_small_file(f.name)}
    sources = {name: path for name, path in sources.items() if name not in LEFT_OUT}
    sources |= {f.name: weights.path / f.name for f in weights.files}
    names = sorted({*sources, CARD})
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not _holds(folder, sources, card):
            raise BadConfig(f"{folder}: is not empty; name a new folder with --to-folder")
        return names
    # Beside it and out of sight: what a kill leaves is not taken for a model, and goes with the next attempt.
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, source in sorted(sources.items()):
        _place(source, part / name)
    (part / CARD).write_text(card, encoding="utf-8")
    flush(part)
    part.rename(folder)
    fsync(folder.parent)
    return names


def _holds(folder: Path, sources: Mapping[str, Path], card: str) -> bool:
    """Whether a folder is what would be made, byte for byte."""
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    if not folder.is_dir() or there != {*sources, CARD} or (folder / CARD).read_bytes() != card.encode():
        return False
    pairs = [(folder / name, source) for name, source in sources.items() if name != CARD]
    return all(ours.samefile(source) or filecmp.cmp(ours, source, shallow=False) for ours, source in pairs)


def _place(source: Path, target: Path) -> None:
    """A link to a large file or a copy.  Files of the Hub cache are links themselves: their contents count."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    if real.stat().st_size >= LINK_FROM_BYTES:
        try:
            os.link(real, target)
        except OSError:
            # Another file system, or one without links: the copy below says what else is wrong.
            target.unlink(missing_ok=True)
        else:
            return
    shutil.copyfile(real, target)
