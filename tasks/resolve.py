"""Pin the base model to a commit; never cached, for a branch may have moved."""

from gradelora.artifacts import BaseModel
from gradelora.config import RunConfig
from gradelora.errors import HubUnavailable
from gradelora.resolve import resolve as stage
from tasks.stage import only, stage_task


@stage_task(retries=5, retry_delay_seconds=[2, 5, 15, 60, 120], retry_condition_fn=only(HubUnavailable))
def resolve(run: RunConfig) -> BaseModel:
    """Commit, files, sizes and tensor headers of the base model."""
    return stage(run.base, runtime=run.runtime)
