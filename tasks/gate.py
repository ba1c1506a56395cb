"""Promote or refuse; never cached, for the champion may have changed."""

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, ModelSnapshot, ValidatedRecords
from gradelora.champion import Champion
from gradelora.config import RunConfig
from gradelora.gate import Verdict, settle
from gradelora.mirror import champion_shared
from gradelora.store import Obtained, Store
from gradelora.trained_on import trained_on
from tasks.encode import encode
from tasks.evaluate import evaluate
from tasks.events import PROMOTED, REFUSED, tell_once
from tasks.stage import stage_task


@stage_task()
def gate(
    run: RunConfig,
    adapter: Obtained[Adapter],
    evaluation: Obtained[EvalReport],
    *,
    fetched: tuple[Obtained[ModelSnapshot], Obtained[ModelSnapshot]],
    prepared: tuple[Obtained[ValidatedRecords], Obtained[EncodedDataset]],
) -> Verdict:
    """Compare with the champion, or the base when there is none, and move the pointer if better."""
    root, (tokenizer, snapshot), (records, data) = Store(run.store.root).root, fetched, prepared

    def examined(champion: Champion) -> EvalReport:
        """The champion on today's items, asked with the prompts of its training where they are known."""
        known, items = trained_on(root, champion.data_digest), data
        if known is not None and known[1] != run.encode:
            items = encode(run.model_copy(update={"encode": known[1]}), records, tokenizer)
        its = Obtained("train", champion.adapter, True, 0.0, f"the champion since {champion.promoted}", "train")
        return evaluate(run, snapshot, its, items).artifact

    with champion_shared(run.store, run.name):
        verdict = settle(
            root, run.name, run.gate, run.evaluate, adapter.artifact, evaluation.artifact, data.artifact, examined
        )
    event = PROMOTED if verdict.promoted else REFUSED
    tell_once(event, run.name, {"adapter": adapter.artifact.digest, "reason": verdict.reason}, root / "told")
    return verdict
