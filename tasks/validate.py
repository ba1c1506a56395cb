"""Check the data files against the rubric schema; never retried, for bad data stays bad."""

from pathlib import Path

from gradelora.artifacts import ASIDE, DataFiles, ValidatedRecords
from gradelora.config import RunConfig
from gradelora.errors import BadData
from gradelora.store import Obtained, Store, key_of
from gradelora.validate import validate as stage
from gradelora.validate.findings import Findings
from tasks.shown import show_validation
from tasks.stage import obtain, stage_task

FINDINGS = "findings.json"


@stage_task()
def validate(run: RunConfig, data: DataFiles) -> Obtained[ValidatedRecords]:
    """Items and records as Arrow, split; what is set aside, with reasons; bad data leave their findings in the UI."""

    def show(folder: Path) -> None:
        show_validation(run.name, Findings.model_validate_json((folder / FINDINGS).read_text(encoding="utf-8")))

    try:
        return obtain(run, stage, run.validation, data, show=lambda records: show(records.path))
    except BadData:
        blocked = Store(run.store.root).building("validate", key_of(stage, run.validation, (data,))) / ASIDE
        if (blocked / FINDINGS).is_file():
            show(blocked)
        raise
