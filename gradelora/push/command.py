"""`gradelora push`: hand over the adapter or the merged model of a configuration."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradelora.config import RunConfig
from gradelora.config_file import load_config
from gradelora.errors import BadConfig

if TYPE_CHECKING:
    from gradelora.gate import Verdict


def add_options(parser: argparse.ArgumentParser) -> None:
    """What, and where to."""
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the Hub repository; created private where there is none")
    parser.add_argument("--to-folder", type=Path, metavar="DIR", help="also, or only, write what is handed over there")
    parser.add_argument("--merged", action="store_true", help="the merged model; default: the adapter")
    parser.add_argument("--refused", action="store_true", help="hand over an adapter that the gate refused, too")
    parser.add_argument("--public", action="store_true", help="allow everybody to read the repository")


def push_command(arguments: argparse.Namespace) -> int:
    """Put the folder together, write or send it, and say where it is.  HF_TOKEN alone holds the token."""
    from gradelora.hub import HubClient
    from gradelora.push.folder import assemble
    from gradelora.push.staging import staging
    from gradelora.push.upload import check_target, upload
    from gradelora.report import model_card
    from gradelora.report.use import Handover

    _check(arguments)
    run = load_config(arguments.config, arguments.overrides)
    if arguments.repo:
        # Before anything is computed: a refusal should not come after a merge.
        check_target(HubClient(run.runtime), arguments.repo, public=arguments.public)
    given, weights = _given(run, merged=arguments.merged, refused=arguments.refused)
    kind: Literal["adapter", "merged"] = "merged" if arguments.merged else "adapter"
    where = arguments.repo or str(arguments.to_folder.absolute())
    card = model_card(given, Handover(kind=kind, where=where, config=str(arguments.config)))
    with staging(run.store.root) as place:
        folder = arguments.to_folder or place / "model"
        facts: dict[str, Any] = {"kind": kind, "folder": str(arguments.to_folder or "")}
        facts["files"] = assemble(folder, weights, given.snapshot, card)
        if arguments.repo:
            pushed = upload(folder, arguments.repo, public=arguments.public, runtime=run.runtime)
            facts |= pushed.model_dump(exclude={"files"})
    print(json.dumps(facts) if arguments.json else "\n".join(f"{name}: {_spell(v)}" for name, v in facts.items() if v))
    return 0


def _spell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _check(arguments: argparse.Namespace) -> None:
    """Raise BadConfig for options that say nothing, or that do not belong together."""
    from gradelora.config import BaseModelConfig

    if not arguments.repo and not arguments.to_folder:
        raise BadConfig("push: name a repository with --repo OWNER/NAME, or a folder with --to-folder DIR")
    if arguments.public and not arguments.repo:
        raise BadConfig("push: --public belongs to --repo")
    if arguments.repo:
        try:
            BaseModelConfig(repo_id=arguments.repo, revision="main")
        except ValueError as error:
            raise BadConfig(f"--repo {arguments.repo}: write it as OWNER/NAME") from error


def _check_verdict(verdict: "Verdict", refused: bool) -> None:
    """Say what the gate thinks of the adapter.  Raises BadConfig for one that it refuses, unless that is meant."""
    if not verdict.promoted and not refused:
        raise BadConfig(
            f"push: the gate refuses this adapter: {verdict.reason}; train it better, or say --refused if that is meant"
        )
    print(f"gate: {'promoted' if verdict.promoted else 'refused'}, {verdict.reason}", file=sys.stderr)


def _given(run: RunConfig, *, merged: bool, refused: bool) -> tuple[Any, Any]:
    """What the card is made of, and the artifact that is handed over."""
    from gradelora.code_version import code_version
    from gradelora.mirror import uploads_finished
    from gradelora.pipeline import Pipeline
    from gradelora.progress import telling
    from gradelora.report import ReportInput

    with telling() as teller, uploads_finished(run.store, teller.line):
        pipeline = Pipeline(run, teller.obtained, teller.line)
        adapter, evaluation = pipeline.adapter, pipeline.evaluation
        verdict = pipeline.judgement()
        # Before the merge, which takes an hour.
        _check_verdict(verdict, refused)
        given = ReportInput(
            run=run,
            made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            code_version=code_version(),
            stages=(),
            plan=pipeline.plan,
            snapshot=pipeline.snapshot,
            records=pipeline.records,
            adapter=adapter,
            evaluation=evaluation,
            verdict=verdict,
            merged=pipeline.merged if merged else None,
        )
        return given, given.merged if merged else adapter
