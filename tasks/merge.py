"""Add the adapter to the base's weights and prove the result; never retried: it resumes."""

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, MergedModel, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.merge import merge as stage
from gradelora.store import Obtained
from tasks.shown import Progress
from tasks.stage import obtain, stage_task


@stage_task()
def merge(
    run: RunConfig,
    snapshot: Obtained[ModelSnapshot],
    adapter: Obtained[Adapter],
    report: Obtained[EvalReport],
    data: Obtained[EncodedDataset],
) -> Obtained[MergedModel]:
    """A checkpoint that is servable at once."""
    inputs = snapshot.artifact, adapter.artifact, report.artifact, data.artifact
    # The merge itself is a CPU's work; its verification loads the model where evaluate did.
    progress = Progress(f"{run.name}-merge")
    gpu = run.merge.verify_items > 0
    return obtain(run, stage, run.merging, *inputs, on_line=progress, show=lambda _: progress.done(), gpu=gpu)
