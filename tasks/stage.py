"""How any stage is keyed, cached, verified on hit and retried.

The store's receipt is the truth: a task asks it, and Prefect is told `Cached` when the
artifact was there and held.  Prefect's own result cache stays off, for two records of one
fact can disagree.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from gradelora import child
from gradelora.artifacts import Artifact, Frozen
from gradelora.config import RunConfig
from gradelora.errors import GradeloraError
from gradelora.store import Obtained, Store

A = TypeVar("A", bound=Artifact)
P = ParamSpec("P")
R = TypeVar("R")
GPU_LIMIT = "gpu"


class StageTask(Task[P, R]):
    """A task whose call gives the data of the state that it ended in, or raises its error.

    Prefect does so for `.submit(...).result()` alone; a direct call would give the state.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Run here and now."""
        state: State[R] = super().__call__(*args, return_state=True, **kwargs)
        return state.result()


def stage_task(**options: Any) -> Callable[[Callable[P, R]], StageTask[P, R]]:
    """`prefect.task` for a stage: results in memory alone, and a user's mistake told in one sentence."""

    def decorate(function: Callable[P, R]) -> StageTask[P, R]:
        name = function.__name__
        return StageTask(plainly(function), name=name, cache_policy=NO_CACHE, persist_result=False, **options)

    return decorate


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Tell a user's mistake (exit code 2) as a Failed state with its sentence, without a traceback."""

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except GradeloraError as error:
            if error.exit_code != 2:
                raise
            return cast("R", Failed(message=str(error), data=error))

    return plain


def ensure_gpu_limit() -> None:
    """Create the machine's training slot where this server has none; one that exists is left as it is."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))


def obtain(
    run: RunConfig,
    stage: Callable[..., A],
    config: Frozen,
    *inputs: Artifact,
    on_line: Callable[[str], None] | None = None,
    show: Callable[[A], None] = lambda _: None,
    gpu: bool = False,
) -> Obtained[A]:
    """The stage's artifact from the store, or built now; the task ends as Cached or Completed.

    `on_line` is told each line that the stage's child process prints; the run's log by default.
    `show` is given the artifact, also where it was cached, to draw it in the UI.
    `gpu` holds the machine's one training slot, and only where work is to be done.
    """
    told = on_line or get_run_logger().info
    # It is called in the thread that reads the child's output, which knows no task run by itself.
    context = contextvars.copy_context()
    call = functools.partial(child.call, on_line=lambda line: context.run(told, line))

    def work(*arguments: Any, **named: Any) -> A:
        if not gpu:
            return call(*arguments, **named)
        # strict: a limit that does not exist is an error, not a warning that nobody reads.
        # A minute: so long the slot of a run that was killed stays taken.
        with concurrency(GPU_LIMIT, occupy=1, strict=True, lease_duration=60, raise_on_lease_renewal_failure=False):
            return call(*arguments, **named)

    logger = get_run_logger()

    def warn(text: str) -> None:
        # Also from the thread that sends to the mirror; a context can be entered by one thread at a time.
        context.copy().run(logger.warning, text)

    obtained = Store.of(run.store, warn).obtain(stage, config, *inputs, runtime=run.runtime, run=work)
    show(obtained.artifact)
    name = "Cached" if obtained.cached else "Completed"
    # Prefect takes a returned state as the task's own and hands its data to the caller.
    return cast("Obtained[A]", Completed(name=name, message=obtained.why, data=obtained))


def only(*errors: type[Exception]) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """A retry condition: these errors and no others."""

    def transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        try:
            state.result()
        except errors:
            return True
        except Exception:
            return False
        return False

    return transient
