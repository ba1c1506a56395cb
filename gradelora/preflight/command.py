"""`gradelora plan`: does it fit, how long, how much, and what would run again; on any laptop."""

import argparse
import threading
from collections.abc import Callable
from concurrent.futures import Future

from gradelora.artifacts import BaseModel, DataFiles
from gradelora.config import RunConfig
from gradelora.errors import BadData, HubRefused, HubUnavailable, NotCached
from gradelora.hardware import preset, this_machine
from gradelora.hub import HubClient
from gradelora.preflight import check, make_plan
from gradelora.preflight.known import known_model
from gradelora.preflight.table import print_plan, print_why
from gradelora.records import collect_data_files
from gradelora.resolve import resolve
from gradelora.why import foresee

# A plan is an answer now: with a shipped description at hand nobody waits for a Hub that is away.
KNOWN_TIMEOUT_S, KNOWN_DEADLINE_S = 3.0, 6.0


def plan_command(arguments: argparse.Namespace, run: RunConfig) -> int:
    """Print the plan, then raise the refusal that it contains; 0 where it fits."""
    base, notes = described(run)
    data, missing = data_here(run)
    notes += missing
    if arguments.why:
        foresight = foresee(run, base, data)
        if arguments.json:
            print("[" + ", ".join(f.model_dump_json() for f in foresight.stages) + "]")
        else:
            print_why(foresight.stages, notes)
        return 0
    elsewhere = arguments.hardware is not None
    hardware = preset(arguments.hardware) if elsewhere else this_machine()
    plan = make_plan(run, base, data, HubClient(run.runtime).cache, hardware, elsewhere=elsewhere)
    plan = plan.model_copy(update={"notes": (*notes, *plan.notes)})
    if arguments.json:
        print(plan.model_dump_json())
    else:
        print_plan(plan, run.runtime.price_per_hour)
    check(run, plan)
    return 0


def described(run: RunConfig) -> tuple[BaseModel, tuple[str, ...]]:
    """The base as the Hub or its cache describes it, else as the project does; and what is to be said of that.

    Raises as `resolve`; that the Hub does not answer, or not as one, only for a model of which no description ships.
    """
    shipped = known_model(run.base.repo_id)
    runtime = run.runtime
    if shipped is not None:
        quick = {"hub_retries": 0, "hub_timeout_s": min(KNOWN_TIMEOUT_S, runtime.hub_timeout_s)}
        runtime = runtime.model_copy(update=quick)
    try:
        if shipped is not None:
            return _soon(lambda: resolve(run.base, runtime=runtime)), ()
        return resolve(run.base, runtime=runtime), ()
    except (HubUnavailable, HubRefused, NotCached) as error:
        if shipped is None:
            raise
        said = f"{error}; planned from the description of {run.base.repo_id} that ships with gradelora"
        return shipped, (said,)


def _soon(work: Callable[[], BaseModel]) -> BaseModel:
    """What `work` gives within KNOWN_DEADLINE_S, however many addresses and answers it waits for.

    Raises HubUnavailable, or what `work` raised.
    """
    answer: Future[BaseModel] = Future()

    def ask() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(KNOWN_DEADLINE_S)
    except TimeoutError:
        raise HubUnavailable(f"the Hub gave no answer within {KNOWN_DEADLINE_S:.0f} s") from None


def data_here(run: RunConfig) -> tuple[DataFiles | None, tuple[str, ...]]:
    """The data files where they are, or None with the reason: a plan needs none."""
    try:
        return collect_data_files(run.data.files), ()
    except BadData as error:
        return None, (f"{error}; planned without data, from encode.max_length",)
