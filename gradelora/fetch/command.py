"""`gradelora fetch` and `gradelora verify --repo`: one model, with or without a run's configuration."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gradelora.artifacts import BaseModel, ModelSnapshot, RemoteFile
from gradelora.config import BaseModelConfig, FetchConfig, Runtime
from gradelora.config_file import load_config
from gradelora.errors import BadConfig, NotCached

if TYPE_CHECKING:
    from gradelora.hub import RepoCache

ENGINES = get_args(Runtime.model_fields["fetch_engine"].annotation)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Which model in which cache; each instead of --config's own."""
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the model; without --config, all that is needed")
    parser.add_argument("--revision", help="branch, tag or commit; default: --config's, else main")
    parser.add_argument("--cache-dir", type=Path, help="the Hub cache; default: --config's, HF_HUB_CACHE, HF_HOME/hub")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `gradelora fetch`."""
    add_place_options(parser)
    parser.add_argument("--engine", choices=ENGINES, help="default: --config's, else auto")
    parser.add_argument("--yes", action="store_true", help="remove orphans of earlier downloads without asking")


def fetch_command(arguments: argparse.Namespace, ask: Callable[[str], str] = input) -> ModelSnapshot:
    """The snapshot, through the store where a configuration names one.  Progress goes to stderr."""
    from gradelora import child
    from gradelora.fetch import fetch
    from gradelora.hub import HubClient
    from gradelora.resolve import resolve
    from gradelora.store import Store

    config, runtime, store = _asked(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        base = resolve(config, runtime=runtime)
        _offer_removal(HubClient(runtime).repo_cache(base.repo_id), base, arguments.yes, ask)
        everything = FetchConfig(part="everything")
        if store is None:
            return fetch(everything, base, out=Path(), runtime=runtime)

        def call(*inputs: object, **named: object) -> ModelSnapshot:
            return child.call(*inputs, **named, on_line=lambda line: print(line, file=sys.stderr, flush=True))  # type: ignore[arg-type]

        return Store(store).obtain(fetch, everything, base, runtime=runtime, run=call).artifact


def verify_command(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Name and state of each file of the snapshot in the cache; needs no network.

    Raises NotCached where the cache knows nothing of the model.
    """
    from gradelora.fetch.verify import Verifier
    from gradelora.hub import HubClient

    config, runtime, _ = _asked(arguments)
    cache = HubClient(runtime).repo_cache(config.repo_id)
    commit = cache.commit_of(config.revision)
    tree = cache.tree(commit) if commit else None
    if commit is None or tree is None:
        raise NotCached(f"{config.repo_id} at {config.revision}: not in {cache.cache}; `gradelora fetch` brings it")
    verifier = Verifier(cache, commit, deep=not arguments.fast)
    return [(f.name, verifier.state(f)) for f in _expected(cache.snapshot(commit), tree)]


def _asked(arguments: argparse.Namespace) -> tuple[BaseModelConfig, Runtime, Path | None]:
    """Model, runtime and store, from the configuration and the options that go before it."""
    engine = getattr(arguments, "engine", None)
    given = {"hub_cache": arguments.cache_dir, "fetch_engine": engine}
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.config:
        run = load_config(arguments.config, arguments.overrides)
        model = {"repo_id": arguments.repo or run.base.repo_id, "revision": arguments.revision or run.base.revision}
        return _model(model), run.runtime.model_copy(update=changes), run.store.root
    if not arguments.repo:
        raise BadConfig("name a model with --repo OWNER/NAME, or a configuration with --config")
    if arguments.overrides:
        raise BadConfig("--set changes a configuration; name one with --config")
    return _model({"repo_id": arguments.repo, "revision": arguments.revision or "main"}), Runtime(**changes), None


def _model(values: dict[str, str]) -> BaseModelConfig:
    try:
        return BaseModelConfig.model_validate(values)
    except ValueError as error:
        raise BadConfig(f"--repo {values['repo_id']}: write it as OWNER/NAME, e.g. openai/gpt-oss-20b") from error


def _expected(snapshot: Path, tree: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """What the snapshot shows, and the weights that its index names even where they are gone."""
    from gradelora.hub.names import INDEX, SINGLE

    weights = {SINGLE}
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        weights = set(json.loads((snapshot / INDEX).read_text())["weight_map"].values())
    return [f for f in tree if f.name in weights or os.path.lexists(snapshot / f.name)]


def _offer_removal(cache: "RepoCache", base: BaseModel, yes: bool, ask: Callable[[str], str]) -> None:
    """Remove what earlier downloads left behind, if a person agrees and nobody is downloading."""
    from gradelora.fetch.progress import spell_bytes

    orphans = [] if cache.busy else list(cache.orphans(base.remote_files))
    if not orphans or not (yes or sys.stdin.isatty()):
        return
    size = spell_bytes(sum(o.size for o in orphans))
    print(f"fetch: {len(orphans)} orphaned parts of earlier downloads hold {size}")
    if not yes:
        print("Remove them? [y/N] ", end="", flush=True)
        with contextlib.suppress(EOFError):
            yes = ask("").strip().lower() in ("y", "yes")
    if yes:
        for orphan in orphans:
            orphan.path.unlink(missing_ok=True)
        print(f"fetch: removed them, {size} are free")
