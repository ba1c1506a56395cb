"""What the server does by itself: mark dead runs, notify people.

What starts runs on new data, and crashed ones again, stands with its deployment in prefect.yaml.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture

from gradelora.errors import BadConfig

# prefect.yaml has every run of a deployment send a heartbeat each 30 s (Prefect's default is 180): ten of
# them may be lost before a run counts as dead.
SILENCE = timedelta(minutes=5)
# After these nobody works on a run, so nobody need hear of it.  One that is to be cancelled must not come
# back as a crash: the server ends it after five minutes, resume/crashed after ten.
OVER = (
    *("Completed", "Failed", "Crashed", "Cancelled", "TimedOut"),
    *("Scheduled", "AwaitingRetry", "Paused", "Suspended", "Cancelling"),
)
ENDS = {f"prefect.flow-run.{state}" for state in OVER}
ALL_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
EACH_RUN = {"prefect.resource.id"}
WORK = {"prefect.resource.role": "flow", "prefect.resource.name": ["finetune", "score"]}
DEPLOYED = {"prefect.resource.role": "deployment"}
LOOKS = {"prefect.resource.role": "flow", "prefect.resource.name": "land"}
FAILURES = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"}


def recovery() -> list[AutomationCore]:
    """A dead run is marked Crashed; resume/crashed then starts it again."""
    heartbeat = "prefect.flow-run.heartbeat"
    return [
        _automation(
            "dead runs are marked Crashed",
            f"No heartbeat and no end for {SILENCE.seconds // 60} min: machine, worker or engine are gone.",
            _trigger({heartbeat}, Posture.Proactive, SILENCE, after={heartbeat}, ends=ENDS, related=[DEPLOYED]),
            ChangeFlowRunState(
                state=StateType.CRASHED, name="Crashed", message=f"no heartbeat for {SILENCE.seconds // 60} minutes"
            ),
        ),
    ]


def alerts(block: UUID) -> list[AutomationCore]:
    """Who is told of what, through one notification block; reasons hold figures, never student text."""
    run = "{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
    adapter = "{{ event.payload.reason }}"
    at_once = timedelta(0)
    return [
        _automation(
            "tell of failed runs",
            "A run failed or crashed.",
            _trigger(FAILURES, Posture.Reactive, at_once, related=[WORK]),
            _notification(block, "gradelora: {{ flow_run.state.name }}", run),
        ),
        _automation(
            "tell of failed looks at the data, once a day",
            "land/watch failed; it looks again by itself.",
            _trigger(FAILURES, Posture.Reactive, timedelta(days=1), related=[LOOKS], each=set()),
            _notification(block, "gradelora: the data cannot be looked at", run),
        ),
        # land/watch is due every five minutes, so this tells of a worker that is gone, too.
        _automation(
            "tell of runs that nobody takes up, once a day",
            "A run is late: no worker, or one that has its hands full.",
            _trigger({"prefect.flow-run.Late"}, Posture.Reactive, timedelta(days=1), related=[DEPLOYED], each=set()),
            _notification(block, "gradelora: no worker takes up runs", run),
        ),
        *(
            _automation(
                f"tell of {event}",
                description,
                _trigger({event}, Posture.Reactive, at_once, match={"prefect.resource.id": "gradelora.*"}),
                _notification(block, f"gradelora: {subject} ({{{{ event.resource.name }}}})", adapter),
            )
            for event, subject, description in (
                ("gradelora.adapter.promoted", "adapter promoted", "The gate promoted an adapter."),
                ("gradelora.adapter.refused", "adapter refused", "The gate refused an adapter; the champion stays."),
                ("gradelora.budget.reached", "budget reached", "Training stopped sealed at its budget."),
            )
        ),
    ]


def notification_block(client: SyncPrefectClient, slug: str) -> UUID:
    """The id of a block as `prefect block ls` spells it, e.g. slack-webhook/graders.  Raises BadConfig."""
    kind, _, name = slug.partition("/")
    known = client.read_block_documents(limit=200)
    for document in known:
        if document.block_type is not None and document.block_type.slug == kind and document.name == name:
            return document.id
    spelled = ", ".join(sorted(f"{d.block_type.slug}/{d.name}" for d in known if d.block_type)) or "none"
    raise BadConfig(f"notify: no block {slug} on this server (there are: {spelled}); create it in the UI")


def synchronise(client: SyncPrefectClient, wanted: list[AutomationCore]) -> list[str]:
    """Create what is missing, renew what differs, leave the rest; says what was done."""
    done = []
    for automation in wanted:
        existing = client.read_automations_by_name(automation.name)
        if not existing:
            client.create_automation(automation)
            done.append(f"created automation: {automation.name}")
        elif _essence(existing[0]) != _essence(automation):
            client.update_automation(existing[0].id, automation)
            done.append(f"renewed automation: {automation.name}")
    return done


def _essence(automation: AutomationCore | Automation) -> dict[str, Any]:
    """What makes one automation; a switch that a person has set in the UI is theirs."""
    core = AutomationCore.model_validate(automation.model_dump())
    essence = core.model_dump(mode="json", exclude={"enabled", "owner_resource"})
    # Sets, which come in another order in every process.
    trigger = essence["trigger"]
    return essence | {"trigger": trigger | {name: sorted(trigger[name]) for name in ("after", "expect", "for_each")}}


def _automation(name: str, description: str, trigger: EventTrigger, action: ActionTypes) -> AutomationCore:
    return AutomationCore(
        name=name, description=description, tags=["gradelora"], trigger=trigger, actions=[action], enabled=True
    )


def _trigger(
    expect: set[str],
    posture: Posture,
    within: timedelta,
    *,
    after: set[str] | None = None,
    ends: set[str] | None = None,
    match: dict[str, Any] | None = None,
    related: list[dict[str, Any]] | None = None,
    each: set[str] | None = None,
) -> EventTrigger:
    return EventTrigger.model_validate(
        {
            "match": match or ALL_RUNS,
            "match_related": related or {},
            "after": after or set(),
            "expect": expect | (ends or set()),
            "for_each": EACH_RUN if each is None else each,
            "posture": posture,
            "threshold": 1,
            "within": within,
        }
    )


def _notification(block: UUID, subject: str, body: str) -> SendNotification:
    return SendNotification(block_document_id=block, subject=subject, body=body)
