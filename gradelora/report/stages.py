"""One stage of a run as a row, with what its receipt knows."""

from gradelora.artifacts import Frozen
from gradelora.store import RECEIPT, Obtained, read_receipt


class StageRow(Frozen):
    """One stage of this run.

    `seconds` passed in this run; `built_seconds` and the peaks are those of the run that built the
    artifact, None where no receipt lies beside it.
    """

    stage: str
    cached: bool
    seconds: float
    why: str
    built_seconds: float | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None


def stage_row(obtained: Obtained) -> StageRow:
    """A row of the stage table, with what the receipt beside the artifact knows."""
    row = StageRow(stage=obtained.label, cached=obtained.cached, seconds=obtained.seconds, why=obtained.why)
    if not (obtained.artifact.path / RECEIPT).exists():
        return row
    receipt = read_receipt(obtained.artifact.path)
    spent = ("peak_rss_bytes", "peak_gpu_bytes")
    return row.model_copy(update={"built_seconds": receipt.seconds, **{name: getattr(receipt, name) for name in spent}})
