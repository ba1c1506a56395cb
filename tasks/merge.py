"""Add the adapter to the base's weights, in the base's own format; never retried: it resumes."""

from gradelora.artifacts import Adapter, MergedModel, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.merge import merge as stage
from gradelora.store import Obtained
from tasks.shown import Progress
from tasks.stage import obtain, stage_task


@stage_task()
def merge(run: RunConfig, snapshot: Obtained[ModelSnapshot], adapter: Obtained[Adapter]) -> Obtained[MergedModel]:
    """A checkpoint that is servable at once."""
    progress = Progress(f"{run.name}-merge")
    inputs = (snapshot.artifact, adapter.artifact)
    return obtain(run, stage, run.merge, *inputs, on_line=progress, show=lambda _: progress.done())
