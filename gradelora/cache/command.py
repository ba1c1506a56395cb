"""`gradelora cache`: show what takes up space and what needs it; remove what is named or needed by nothing."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gradelora.cache.entries import Entry
from gradelora.config import Runtime
from gradelora.config_file import load_config
from gradelora.errors import BadConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside --config, --set and --json."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="remove these, as the list names them")
    parser.add_argument("--unneeded", action="store_true", help="remove what nothing in the given stores needs")
    parser.add_argument("--store", type=Path, action="append", default=[], help="a store beside that of --config")
    parser.add_argument("--cache-dir", type=Path, help="the Hub cache; default: --config's, HF_HUB_CACHE, HF_HOME/hub")
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def cache_command(arguments: argparse.Namespace, ask: Callable[[str], str] = input) -> int:
    """List everything, or remove what is asked for; 0 when that was done, 1 when the answer was no."""
    from gradelora.cache import hub, sealed
    from gradelora.hub import HubClient

    run = load_config(arguments.config, arguments.overrides) if arguments.config else None
    runtime = run.runtime if run else Runtime.model_validate({})
    cache = HubClient(runtime.model_copy(update={"hub_cache": arguments.cache_dir or runtime.hub_cache})).cache
    stores = [run.store.root] if run else []
    stores += arguments.store
    holdings = tuple(sealed.Holdings(root) for root in stores)
    entries = [e for held in holdings for e in held.entries()] + list(hub.entries(cache, holdings))
    if not arguments.names and not arguments.unneeded:
        _show(entries, cache, stores, as_json=arguments.json)
        return 0
    if arguments.unneeded and not stores:
        raise BadConfig("--unneeded: what needs a model is written in the store; name it by --config or --store")
    chosen = _named(entries, arguments.names)
    chosen += [e for e in entries if arguments.unneeded and e.unneeded and e not in chosen]
    return _remove(chosen, cache, arguments, ask)


def _named(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The entries of these names.  Raises BadConfig for one that is unknown or must stay."""
    found = []
    for name in names:
        matching = [e for e in entries if e.name == name]
        if not matching:
            raise BadConfig(f"{name}: nothing has this name; `gradelora cache` lists the names")
        for entry in matching:
            if entry.locked:
                raise BadConfig(f"{name}: needed by {', '.join(entry.needed_by)}; roll back or end that first")
        found += matching
    return found


def _remove(chosen: Sequence[Entry], cache: Path, arguments: argparse.Namespace, ask: Callable[[str], str]) -> int:
    from gradelora.cache import hub, sealed

    # Questions and the list go to stderr where stdout is for a machine.
    out = sys.stderr if arguments.json else sys.stdout
    size = sum(e.size_bytes for e in chosen)
    for entry in chosen:
        print(_line(entry), file=out)
    if chosen and not arguments.yes:
        print(f"Remove these {len(chosen)}, {_spell(size)}? [y/N] ", end="", file=out, flush=True)
        if not _agreed(ask):
            print("nothing removed", file=out)
            return 1
    for entry in chosen:
        if entry.kind in ("artifact", "unfinished"):
            sealed.remove(entry)
        else:
            hub.remove(entry, cache)
    if arguments.json:
        print(json.dumps({"removed": [e.name for e in chosen], "bytes": size}))
    else:
        print(f"removed {len(chosen)}, {_spell(size)}" if chosen else "nothing to remove: something needs each of them")
    return 0


def _agreed(ask: Callable[[str], str]) -> bool:
    """Whether a person says yes; nobody there is a no."""
    try:
        return ask("").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _show(entries: Sequence[Entry], cache: Path, stores: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{**e.model_dump(mode="json"), "unneeded": e.unneeded} for e in entries]))
        return
    print(f"Hub cache {cache}; stores {', '.join(map(str, stores)) or 'none given (--config, --store)'}")
    for entry in entries:
        print(_line(entry))
    free = sum(e.size_bytes for e in entries if e.unneeded)
    print(f"{_spell(sum(e.size_bytes for e in entries))} in all; {_spell(free)} needed by nothing (--unneeded)")


def _line(entry: Entry) -> str:
    needed = ", ".join(entry.needed_by) or ("nothing" if entry.ours else "another program, perhaps")
    return f"{entry.name:60} {_spell(entry.size_bytes):>9}  {entry.last_used}  needed by: {needed}"


def _spell(size: int) -> str:
    from gradelora.fetch.progress import spell_bytes

    return spell_bytes(size)
