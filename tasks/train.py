"""Train the adapter; a lost rank is retried from the newest sealed checkpoint."""

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.errors import NotEnoughMemory, RankLost
from gradelora.preflight import Plan
from gradelora.relief import with_relief
from gradelora.store import Obtained
from gradelora.train import train as stage
from tasks.shown import Progress, show_losses
from tasks.stage import obtain, only, stage_task


@stage_task(retries=1, retry_delay_seconds=15, retry_condition_fn=only(RankLost))
def train(
    run: RunConfig, plan: Plan, snapshot: Obtained[ModelSnapshot], data: Obtained[EncodedDataset]
) -> Obtained[Adapter]:
    """A PEFT adapter, trained by DeepSpeed ranks that this process only launches."""
    progress = Progress(f"{run.name}-train")

    def show(adapter: Adapter) -> None:
        progress.done()
        show_losses(run.name, adapter)

    inputs = (snapshot.artifact, data.artifact)
    try:
        return obtain(run, stage, run.train, *inputs, on_line=progress, show=show, gpu=True)
    except NotEnoughMemory as error:
        raise with_relief(error, run, plan) from error
