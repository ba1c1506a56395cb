"""Crashed runs go on where they stopped, by themselves; a few times, for some would crash for ever."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Scheduled

FLOWS = ("finetune", "score")


@flow(name="resume", log_prints=True, persist_result=False)
def resume(at_most: int = 3, after_s: float = 30, within_hours: float = 24) -> State[Any]:
    """Start again what has crashed: its machine, worker or engine died, and its work is sealed.

    Args:
        at_most: how often a run may have been started so far
        after_s: seconds since the crash; a worker reports one twice, and the second report would
            end a run that has begun again
        within_hours: an older crash is history
    """
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        crashed = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": FLOWS}}),
            flow_run_filter=FlowRunFilter.model_validate(
                {
                    "state": {"type": {"any_": ["CRASHED"]}},
                    "end_time": {"after_": now - timedelta(hours=within_hours)},
                    # Only a worker can take one up again.
                    "deployment_id": {"is_null_": False},
                }
            ),
        )
        again = [run for run in crashed if run.run_count <= at_most and _seconds_since(run, now) >= after_s]
        for run in again:
            waits: State[Any] = Scheduled(name="AwaitingRetry", message="crashed; goes on where it stopped")
            client.set_flow_run_state(run.id, waits, force=True)
    told = ", ".join(f"{run.name} (start {run.run_count + 1})" for run in again) or "none"
    return Completed(message=f"{len(crashed)} crashed; started again: {told}")


def _seconds_since(run: FlowRun, now: datetime) -> float:
    return (now - run.state.timestamp).total_seconds() if run.state else 0.0
