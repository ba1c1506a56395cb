"""Check the data files against the rubric record's rules, and split what is left.

Bad files block, bad rows are set aside, odd ones are reported; Great Expectations judges.
"""

from pathlib import Path

from gradelora.artifacts import ASIDE, DataFiles, ValidatedRecords
from gradelora.config import Runtime, ValidateConfig
from gradelora.errors import BadData
from gradelora.validate.findings import Findings

VERSION = 2


def validate(config: ValidateConfig, data: DataFiles, *, out: Path, runtime: Runtime) -> ValidatedRecords:  # noqa: ARG001
    """Items and records as Arrow, the quarantine and the findings.

    Raises BadData with the first finding that blocks; findings and quarantine then lie under
    `out`/aside.  Raises CheckFailed where Great Expectations itself fails.
    """
    findings = examine(config, data, out)
    for line in findings.lines():
        print(line, flush=True)
    if findings.blocked:
        raise BadData(findings.sentence())
    whole = findings.data_set
    return ValidatedRecords.collect(
        out,
        items=whole.items,
        records=whole.records,
        quarantined=whole.quarantined,
        warnings=findings.warnings,
        splits=whole.splits,
    )


def examine(config: ValidateConfig, data: DataFiles, out: Path) -> Findings:
    """Everything that there is to say about the files, also where it blocks the run.

    Fills `out`: items.arrow, records.arrow, quarantine.jsonl, findings.json where training
    could go on; else the last two under `out`/aside.  Data Docs lie under `out`/aside/data_docs.
    Raises CheckFailed where Great Expectations itself fails.
    """
    from gradelora.validate.examination import examination

    (out / ASIDE).mkdir(parents=True, exist_ok=True)
    return examination(config, data, out)
