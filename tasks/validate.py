"""Check the data files against the rubric schema; never retried, for bad data stays bad."""

from gradelora.artifacts import DataFiles, ValidatedRecords
from gradelora.config import RunConfig
from gradelora.store import Obtained
from gradelora.validate import validate as stage
from tasks.stage import obtain, stage_task


@stage_task()
def validate(run: RunConfig, data: DataFiles) -> Obtained[ValidatedRecords]:
    """Items and records as Arrow, split; what is set aside, with reasons."""
    return obtain(run, stage, run.validation, data)
