"""Runs whose machine, worker or engine died go on where they stopped, by themselves.

It is started a minute after a crash and every ten minutes, for an event may be lost.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Scheduled

FLOWS = ("finetune", "score")


@flow(name="resume", log_prints=True, persist_result=False)
def resume(at_most: int = 3, after_s: float = 30, within_hours: float = 24, stuck_minutes: float = 10) -> State[Any]:
    """Start again what has crashed or never began, and end what was to be cancelled; sealed work is kept.

    Args:
        at_most: how often a crashed run may have been started so far, for some would crash for ever
        after_s: seconds since the crash; a worker reports one twice, and the second report would
            end a run that has begun again
        within_hours: an older crash is history
        stuck_minutes: how long a run may be Pending or Cancelling before whoever was to start or end it
            counts as dead; longer than a pod of yours takes to start
    """
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        lately = {"end_time": {"after_": now - timedelta(hours=within_hours)}}
        crashed = [run for run in _runs(client, "CRASHED", **lately) if _seconds_since(run, now) >= after_s]
        again = [run for run in crashed if run.run_count <= at_most]
        again += _stuck(client, "PENDING", now, stuck_minutes)
        for run in again:
            waits: State[Any] = Scheduled(name="AwaitingRetry", message="lost its process; goes on where it stopped")
            client.set_flow_run_state(run.id, waits, force=True)
        ended = _stuck(client, "CANCELLING", now, stuck_minutes)
        for run in ended:
            gone: State[Any] = Cancelled(message=f"nobody has ended it for {stuck_minutes:g} minutes")
            client.set_flow_run_state(run.id, gone, force=True)
    started = ", ".join(f"{run.name} (start {run.run_count + 1})" for run in again) or "none"
    cancelled = ", ".join(run.name for run in ended) or "none"
    return Completed(message=f"{len(crashed)} crashed; started again: {started}; cancelled: {cancelled}")


def _stuck(client: SyncPrefectClient, state: str, now: datetime, minutes: float) -> list[FlowRun]:
    return [run for run in _runs(client, state) if _seconds_since(run, now) >= 60 * minutes]


def _runs(client: SyncPrefectClient, state: str, **more: Any) -> list[FlowRun]:
    """Runs in a state that a worker can take up again."""
    wanted = {"state": {"type": {"any_": [state]}}, "deployment_id": {"is_null_": False}, **more}
    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": FLOWS}}),
        flow_run_filter=FlowRunFilter.model_validate(wanted),
    )


def _seconds_since(run: FlowRun, now: datetime) -> float:
    return (now - run.state.timestamp).total_seconds() if run.state else 0.0
