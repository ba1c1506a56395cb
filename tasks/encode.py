"""Turn validated items into tokens; never retried, for it is deterministic."""

from gradelora.artifacts import EncodedDataset, ModelSnapshot, ValidatedRecords
from gradelora.config import RunConfig
from gradelora.encode import encode as stage
from gradelora.store import Obtained
from tasks.stage import obtain, stage_task


@stage_task()
def encode(
    run: RunConfig, records: Obtained[ValidatedRecords], tokenizer: Obtained[ModelSnapshot]
) -> Obtained[EncodedDataset]:
    """Arrow with input_ids and prompt_length, a dataset a split."""
    return obtain(run, stage, run.encode, records.artifact, tokenizer.artifact)
