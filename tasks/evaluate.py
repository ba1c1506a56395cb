"""Score held-out items with base and adapter; a lost process is retried once."""

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.errors import ChildFailed
from gradelora.evaluate import evaluate as stage
from gradelora.store import Obtained
from tasks.stage import obtain, only, stage_task


@stage_task(retries=1, retry_delay_seconds=15, retry_condition_fn=only(ChildFailed))
def evaluate(
    run: RunConfig, snapshot: Obtained[ModelSnapshot], adapter: Obtained[Adapter], data: Obtained[EncodedDataset]
) -> Obtained[EvalReport]:
    """Agreement with the human raters, base beside adapter."""
    return obtain(run, stage, run.evaluate, snapshot.artifact, adapter.artifact, data.artifact, gpu=True)
