"""`gradelora`: every stage without Prefect, readable for people, `--json` for machines.

Exit codes: 0 done, 2 something that you can mend (configuration, data, disk, GPUs), 1 a fault.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradelora import __version__
from gradelora.artifacts import Artifact, Frozen, sha256_file
from gradelora.cache import command as cache_options
from gradelora.config import RunConfig, ValidateConfig
from gradelora.config_file import load_config
from gradelora.errors import BadConfig, Damaged, GradeloraError
from gradelora.fetch import command as fetch_options
from gradelora.mirror import command as mirror_options
from gradelora.push import command as push_options

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error of ours is one sentence on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except GradeloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was sealed is kept", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradelora", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in STAGES.items():
        stage = _command(commands, name, purpose, _stage(name))
        if name == "train":
            stage.add_argument("--from-checkpoint", type=Path, metavar="FOLDER", help=FROM_CHECKPOINT)
    plan = _command(commands, "plan", "what the run needs and whether it fits; nothing is downloaded", _plan)
    plan.add_argument("--hardware", help="plan for another machine: 2xh200, 1xh200, 8xh100, 1xh100, 2xa100, cpu")
    plan.add_argument("--why", action="store_true", help="only what is cached, what will run, and why")
    check = commands.add_parser("validate", help="check data files against the rubric schema")
    check.add_argument("paths", nargs="*", metavar="PATH", help="data files; default: those of --config")
    _common(check, _validate, config_required=False)
    score = _command(commands, "score", "score new answers with the champion's adapter, or another", _score)
    score.add_argument("files", nargs="+", metavar="FILE")
    score.add_argument("--out", type=Path, required=True, help="folder for scores.jsonl; what was scored is kept")
    score.add_argument("--adapter", type=Path, help="folder of an adapter; default: the deployment's champion")
    score.add_argument("--base", metavar="OWNER/NAME", help="the adapter's base; default: that of --config")
    score.add_argument("--threshold", type=float, default=0.7, help="probability below which a human should look")
    gate = _command(
        commands, "gate", "promote the evaluated adapter if it is shown to be better than the champion", _gate
    )
    gate.add_argument("--again", action="store_true", help="also an adapter that was rolled back")
    push = _command(commands, "push", "hand over the adapter or the merged model: a Hub repository or a folder", _push)
    push_options.add_options(push)
    _command(commands, "rollback", "go back to the champion before the present one", _rollback)
    bring = commands.add_parser("fetch", help=FETCH, description=FETCH)
    fetch_options.add_options(bring)
    _common(bring, _fetch, config_required=False)
    verify = commands.add_parser("verify", help="re-hash every sealed artifact, or one model of the Hub cache")
    fetch_options.add_place_options(verify)
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument("--deep", action="store_true", help="read every byte: the default")
    depth.add_argument("--fast", action="store_true", help="sizes and times alone for large files")
    _common(verify, _verify, config_required=False)
    cache = commands.add_parser("cache", help=CACHE, description=CACHE)
    cache_options.add_options(cache)
    _common(cache, cache_options.cache_command, config_required=False)
    mirror_options.add_options(_command(commands, "mirror", MIRROR, _mirror))
    doctor = commands.add_parser("doctor", help=DOCTOR, description=DOCTOR)
    doctor.add_argument("--gpu", action="store_true", help=MEASURE)
    doctor.add_argument("--device", choices=("cuda", "cpu"), help="of --gpu; default: that of --config, else cuda")
    _common(doctor, _doctor, config_required=False)
    return parser


FETCH = "bring the base model's files into the Hub cache, every byte verified"
CACHE = "show what the Hub cache and the store hold and what needs it; remove what is named or needed by nothing"
MIRROR = "the copy of the store at store.mirror: what it holds, and both ways by hand"
DOCTOR = "check this machine, one line each: ok, or what to do"
MEASURE = "measure it: packed weights bit for bit, a step against the plan, ranks, disks; later plans use the rates"
FROM_CHECKPOINT = "go on from a sealed checkpoint that another number of processes wrote (checkpoints/step-N)"
STAGES = {
    "encode": "turn validated items into tokens",
    "train": "train the adapter",
    "evaluate": "score held-out items with base and adapter",
    "merge": "add the adapter to the base's weights, in the base's own format",
}
PROPERTIES = {
    "encode": "encoded",
    "train": "adapter",
    "evaluate": "evaluation",
    "merge": "merged",
}


def _command(commands: Any, name: str, purpose: str, command: Command) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose, description=purpose)
    _common(parser, command, config_required=True)
    return parser


def _common(parser: argparse.ArgumentParser, command: Command, *, config_required: bool) -> None:
    parser.add_argument("--config", type=Path, required=config_required, help="e.g. deployments/demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(command=command)


def _config(arguments: argparse.Namespace) -> RunConfig:
    started = getattr(arguments, "from_checkpoint", None)
    return load_config(arguments.config, [*arguments.overrides, *(_starting_from(started) if started else ())])


def _starting_from(checkpoint: Path) -> tuple[str, ...]:
    """The two settings that name a checkpoint: by its contents for the key, by its place for this machine."""
    from gradelora.train.seals import MANIFEST

    if not (checkpoint / MANIFEST).is_file():
        raise BadConfig(f"--from-checkpoint {checkpoint}: no {MANIFEST}; name a sealed folder checkpoints/step-N")
    return f"train.start_from={sha256_file(checkpoint / MANIFEST)}", f"runtime.start_checkpoint={checkpoint.absolute()}"


def _stage(name: str) -> Command:
    """The command that obtains one stage's artifact and all that it needs."""

    def command(arguments: argparse.Namespace) -> int:
        from gradelora.mirror import uploads_finished
        from gradelora.pipeline import Pipeline
        from gradelora.progress import telling

        run = _config(arguments)
        with telling() as teller, uploads_finished(run.store, teller.line):
            pipeline = Pipeline(run, teller.obtained, teller.line)
            artifact: Artifact = getattr(pipeline, PROPERTIES[name])
        _print(arguments, artifact, {"digest": artifact.digest})
        return 0

    return command


def _print(arguments: argparse.Namespace, value: Frozen, more: dict[str, Any] | None = None) -> None:
    """The facts of an artifact as JSON, or as one `name: value` line each."""
    facts = {**value.model_dump(mode="json", exclude={"files"}), **(more or {})}
    if arguments.json:
        print(json.dumps(facts))
        return
    for name, fact in facts.items():
        print(f"{name}: {fact if isinstance(fact, str | int | float) else json.dumps(fact)}")


def _plan(arguments: argparse.Namespace) -> int:
    from gradelora.preflight.command import plan_command

    return plan_command(arguments, _config(arguments))


def _validate(arguments: argparse.Namespace) -> int:
    from gradelora.records import collect_data_files
    from gradelora.validate.command import validate_command

    run = _config(arguments) if arguments.config else None
    patterns = tuple(arguments.paths) or (run.data.files if run else ())
    if not patterns:
        raise BadConfig("validate: name data files, or a configuration with --config")
    return validate_command(run.validation if run else ValidateConfig(), collect_data_files(patterns), arguments.json)


def _score(arguments: argparse.Namespace) -> int:
    from gradelora.mirror import uploads_finished
    from gradelora.pipeline import Pipeline
    from gradelora.progress import telling
    from gradelora.records import collect_data_files
    from gradelora.score.chosen import choose
    from gradelora.score.scored import copied_to

    if arguments.base:
        arguments.overrides.append(f"base.repo_id={arguments.base}")
    run, data = _config(arguments), collect_data_files(tuple(arguments.files))
    with telling() as teller, uploads_finished(run.store, teller.line):
        picked = choose(run, arguments.adapter)
        teller.line(f"scoring with {picked.why}")
        scores = Pipeline(run, teller.obtained, teller.line).scores(picked, data, arguments.threshold)
    _print(arguments, scores, {"file": str(copied_to(scores, arguments.out)), "adapter": picked.why})
    return 0


def _gate(arguments: argparse.Namespace) -> int:
    from gradelora.mirror import uploads_finished
    from gradelora.pipeline import Pipeline
    from gradelora.progress import telling

    run = _config(arguments)
    with telling() as teller, uploads_finished(run.store, teller.line):
        verdict = Pipeline(run, teller.obtained, teller.line).verdict(again=arguments.again)
    print(verdict.model_dump_json() if arguments.json else verdict.reason)
    return 0


def _push(arguments: argparse.Namespace) -> int:
    return push_options.push_command(arguments)


def _rollback(arguments: argparse.Namespace) -> int:
    from gradelora.champion import rollback
    from gradelora.mirror import champion_shared, uploads_finished

    run = _config(arguments)
    with uploads_finished(run.store, _tell), champion_shared(run.store, run.name):
        champion = rollback(run.store.root, run.name)
    now = f"the adapter of {champion.promoted}: {champion.adapter.path}" if champion else "the base"
    print(json.dumps(champion and champion.model_dump(mode="json")) if arguments.json else f"{run.name} uses {now}")
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _mirror(arguments: argparse.Namespace) -> int:
    from gradelora.mirror.command import mirror_command

    return mirror_command(arguments, _config(arguments))


def _fetch(arguments: argparse.Namespace) -> int:
    snapshot = fetch_options.fetch_command(arguments)
    _print(arguments, snapshot, {"digest": snapshot.digest})
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from gradelora.store import Store, verify_folder

    if arguments.repo or not arguments.config:
        files = fetch_options.verify_command(arguments)
        report = [{"file": name, "state": state} for name, state in files]
        print(json.dumps(report) if arguments.json else "\n".join(f"{state:8} {name}" for name, state in files))
        return 0 if all(state == "ok" for _, state in files) else 1
    if arguments.revision or arguments.cache_dir:
        raise BadConfig("--revision and --cache-dir belong to one model; name it with --repo")

    damaged, rows = 0, []
    for folder in Store(_config(arguments).store.root).folders():
        try:
            verify_folder(folder, deep=not arguments.fast)
            rows.append({"stage": folder.parent.name, "key": folder.name, "state": "ok"})
        except Damaged as error:
            damaged += 1
            rows.append({"stage": folder.parent.name, "key": folder.name, "state": str(error)})
    if arguments.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['stage']:10} {row['key'][:12]}  {row['state']}")
    return 1 if damaged else 0


def _doctor(arguments: argparse.Namespace) -> int:
    from gradelora.doctor.command import doctor_command

    return doctor_command(arguments, _config(arguments) if arguments.config else None)


if __name__ == "__main__":
    sys.exit(main())
