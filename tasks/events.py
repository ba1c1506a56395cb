"""Events of our own, which the automations wait for; figures and hashes alone, never student text.

They are posted, not queued: `prefect.events.emit_event` hands an event to a background thread
and cannot tell whether the server ever took it.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.context import FlowRunContext
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger
from prefect.events.schemas.events import Event
from prefect.logging import get_run_logger

from gradelora.errors import BudgetReached

DATA_LANDED = "gradelora.data.landed"
PROMOTED = "gradelora.adapter.promoted"
REFUSED = "gradelora.adapter.refused"
BUDGET_REACHED = "gradelora.budget.reached"


def send(event: str, name: str, payload: dict[str, Any]) -> float:
    """Tell the server of one event about the deployment `name`; when it took it, POSIX seconds of its own clock.

    Raises httpx.HTTPError where it does not take it.
    """
    context = FlowRunContext.get()
    related = []
    if context is not None and context.flow_run is not None:
        run = context.flow_run
        related = [
            {
                "prefect.resource.id": f"prefect.flow-run.{run.id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": run.name,
            }
        ]
    told = Event.model_validate(
        {
            "event": event,
            "resource": {"prefect.resource.id": f"gradelora.{name}", "prefect.resource.name": name},
            "related": related,
            "payload": payload,
        }
    )
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events", json=[told.model_dump(mode="json")]).raise_for_status()
    return parsedate_to_datetime(answer.headers["date"]).timestamp()


def heard(event: str, name: str, since: float) -> bool:
    """Whether a trigger has made a run of a deployment that waits for this event since then.

    `since` is what `send` gave.  A server that took an event may still lose it: its broker is memory, or it
    ends before the trigger has looked.
    """
    with get_client(sync_client=True) as client:
        waiting = _waiting(client, event, f"gradelora.{name}")
        chosen = FlowRunFilter.model_validate(
            {
                "deployment_id": {"any_": waiting},
                "created_by": {"type_": ["AUTOMATION"]},
                "expected_start_time": {"after_": datetime.fromtimestamp(since, UTC)},
            }
        )
        runs = client.read_flow_runs(flow_run_filter=chosen) if waiting else []
    # A run that crashed and was started again is expected later than it was made.
    return any(run.created is not None and run.created.timestamp() >= since for run in runs)


def _waiting(client: SyncPrefectClient, event: str, resource: str) -> list[str]:
    """Ids of the deployments that a trigger starts on this event."""
    found = []
    for automation in client.read_automations():
        trigger = automation.trigger
        if isinstance(trigger, EventTrigger) and event in trigger.expect:
            wanted = dict(trigger.match.items()).get("prefect.resource.id", [])
            found += [a for a in automation.actions if isinstance(a, RunDeployment) and resource in wanted]
    return [str(action.deployment_id) for action in found if action.deployment_id]


def try_to_send(event: str, name: str, payload: dict[str, Any]) -> bool:
    """The same for news that must not end a run; whether the server took it."""
    try:
        send(event, name, payload)
    except Exception as error:
        get_run_logger().warning("the server did not take the event %s: %s", event, error)
        return False
    return True


def tell_once(event: str, name: str, payload: dict[str, Any], folder: Path) -> None:
    """Send what the gate decided about one adapter; a cached run that decides the same again sends nothing.

    `folder` keeps the last one told of each deployment.
    """
    last = folder / f"{name}.txt"
    this = f"{event} {payload['adapter']}"
    folder.mkdir(exist_ok=True, mode=0o700)
    # Two runs of one configuration decide the same at the same moment.
    with last.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = last.read_text(encoding="utf-8") if last.is_file() else ""
        if told != this and try_to_send(event, name, payload):
            part = last.with_suffix(".part")
            part.write_text(this, encoding="utf-8")
            part.replace(last)


@contextlib.contextmanager
def telling_of_the_budget(name: str) -> Iterator[None]:
    """A run that stops at its budget is an event of its own, beside the failure that it ends as."""
    try:
        yield
    except BudgetReached as error:
        try_to_send(BUDGET_REACHED, name, {"reason": str(error)})
        raise
