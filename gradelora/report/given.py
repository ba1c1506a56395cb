"""Everything that the page is made of; the caller fills it, the page measures nothing itself."""

from gradelora.artifacts import Adapter, EvalReport, Frozen, MergedModel, ModelSnapshot, ValidatedRecords
from gradelora.config import RunConfig
from gradelora.gate import Verdict
from gradelora.preflight import Plan
from gradelora.report.compared import Comparison
from gradelora.report.stages import StageRow


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
    comparison: Comparison | None = None
