"""Everything that the page is made of; the caller fills it, the page measures nothing itself."""

from gradelora.artifacts import Adapter, EvalReport, Frozen, MergedModel, ModelSnapshot, ValidatedRecords
from gradelora.config import RunConfig
from gradelora.gate import Verdict
from gradelora.preflight import Plan
from gradelora.store import RECEIPT, Obtained, read_receipt


class StageRow(Frozen):
    """One stage of this run.

    `seconds` passed in this run; `built_seconds` and `peak_rss_bytes` are those of the run that
    built the artifact, None where no receipt lies beside it.
    """

    stage: str
    cached: bool
    seconds: float
    why: str
    built_seconds: float | None = None
    peak_rss_bytes: int | None = None


class ReportInput(Frozen):
    """One run.  `made_at` is printed as it is: the page reads no clock."""

    run: RunConfig
    made_at: str
    code_version: str
    stages: tuple[StageRow, ...]
    plan: Plan
    snapshot: ModelSnapshot
    records: ValidatedRecords
    adapter: Adapter
    evaluation: EvalReport
    verdict: Verdict
    merged: MergedModel | None = None


def stage_row(obtained: Obtained) -> StageRow:
    """A row of the stage table, with what the receipt beside the artifact knows."""
    row = StageRow(stage=obtained.label, cached=obtained.cached, seconds=obtained.seconds, why=obtained.why)
    if not (obtained.artifact.path / RECEIPT).exists():
        return row
    receipt = read_receipt(obtained.artifact.path)
    return row.model_copy(update={"built_seconds": receipt.seconds, "peak_rss_bytes": receipt.peak_rss_bytes})
