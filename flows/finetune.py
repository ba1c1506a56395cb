"""The main path: graded answers in, a proved adapter out.

config - resolve - preflight -+- fetch --------------+- train - evaluate - gate - [merge] - report
                              +- validate - encode --+
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from prefect import flow

from gradelora import launch
from gradelora.config_file import load_config
from gradelora.errors import GradeloraError
from gradelora.mirror import uploads_finished
from gradelora.outcome import Outcome, print_outcome
from tasks.encode import encode
from tasks.evaluate import evaluate
from tasks.events import telling_of_the_budget
from tasks.fetch import fetch
from tasks.gate import gate
from tasks.merge import merge
from tasks.preflight import collect, preflight
from tasks.report import report
from tasks.resolve import resolve
from tasks.stage import ensure_gpu_limit, plainly
from tasks.train import train
from tasks.validate import validate


@flow(name="finetune", log_prints=True, persist_result=False, validate_parameters=True)
@plainly
def finetune(config: str = "deployments/demo.yaml", overrides: list[str] | None = None) -> Outcome:
    """Fine-tune a base model on graded answers; promote the adapter if it agrees better with the raters.

    Args:
        config: a YAML file of settings, e.g. deployments/h200.yaml
        overrides: changes for this run, e.g. ["train.learning_rate=1e-4"]
    """
    run = load_config(Path(config), overrides or ())
    ensure_gpu_limit()
    with uploads_finished(run.store, print), nothing_left_running(), telling_of_the_budget(run.name):
        base = resolve(run)
        data = collect(run)
        plan = preflight(run, base, data)

        tokenizer = fetch(run, base, part="tokenizer")
        fetching = fetch.submit(run, base, part="everything")  # minutes to hours, beside the data's own stages
        records = validate(run, data)
        encoded = encode(run, records, tokenizer)
        snapshot = fetching.result()

        adapter = train(run, plan, snapshot, encoded)
        evaluation = evaluate(run, snapshot, adapter, encoded)
        fetched, prepared = (tokenizer, snapshot), (records, encoded)
        verdict = gate(run, adapter, evaluation, fetched=fetched, prepared=prepared)
        merged = merge(run, snapshot, adapter, evaluation, encoded) if run.merge.enabled and verdict.promoted else None
        return report(
            run,
            plan,
            verdict,
            fetched=fetched,
            prepared=prepared,
            adapter=adapter,
            evaluation=evaluation,
            merged=merged,
        )


@contextlib.contextmanager
def nothing_left_running() -> Iterator[None]:
    """A failed or cancelled run ends the download that still goes on beside it; its chunks are kept."""
    try:
        yield
    except BaseException:
        launch.end_all()
        raise


def main() -> int:
    """`python -m flows.finetune --config FILE`: run here, with a server of its own where none is set."""
    parser = argparse.ArgumentParser(prog="python -m flows.finetune", description="Run the flow here and now.")
    parser.add_argument("--config", required=True, help="e.g. deployments/demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true", help="the outcome as one JSON object, the last line of stdout")
    arguments = parser.parse_args()
    try:
        outcome = finetune(arguments.config, arguments.overrides)
    except GradeloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(outcome.model_dump_json())
    else:
        print_outcome(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
