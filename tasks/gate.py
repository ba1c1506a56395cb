"""Promote or refuse; never cached, for the champion may have changed."""

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport
from gradelora.config import RunConfig
from gradelora.gate import Verdict, settle
from gradelora.mirror import champion_shared
from gradelora.store import Obtained, Store
from tasks.events import PROMOTED, REFUSED, tell_once
from tasks.stage import stage_task


@stage_task()
def gate(
    run: RunConfig, adapter: Obtained[Adapter], evaluation: Obtained[EvalReport], data: Obtained[EncodedDataset]
) -> Verdict:
    """Compare with the champion, or the base when there is none, and move the pointer if better."""
    root, digest = Store(run.store.root).root, data.artifact.digest
    with champion_shared(run.store, run.name):
        verdict = settle(root, run.name, run.gate, run.evaluate, adapter.artifact, evaluation.artifact, digest)
    event = PROMOTED if verdict.promoted else REFUSED
    tell_once(event, run.name, {"adapter": adapter.artifact.digest, "reason": verdict.reason}, root / "told")
    return verdict
