"""Add the adapter to the base's weights, in the base's own format; never retried: it resumes."""

from gradelora.artifacts import Adapter, MergedModel, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.merge import merge as stage
from gradelora.store import Obtained
from tasks.stage import obtain, stage_task


@stage_task()
def merge(run: RunConfig, snapshot: Obtained[ModelSnapshot], adapter: Obtained[Adapter]) -> Obtained[MergedModel]:
    """A checkpoint that is servable at once."""
    return obtain(run, stage, run.merge, snapshot.artifact, adapter.artifact)
