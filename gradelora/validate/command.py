"""`gradelora validate PATH...`: the findings of data files, without a run."""

import tempfile
from pathlib import Path

from gradelora.artifacts import DataFiles
from gradelora.config import ValidateConfig
from gradelora.validate import examine


def validate_command(config: ValidateConfig, data: DataFiles, as_json: bool) -> int:
    """Print what was found; 0 when training could go on, 2 when the data block it."""
    with tempfile.TemporaryDirectory() as folder:
        findings = examine(config, data, Path(folder))
    if as_json:
        print(findings.model_dump_json())
    else:
        print("\n".join(findings.lines()))
        print(f"blocked: {findings.sentence()}" if findings.blocked else "training could go on")
    return 2 if findings.blocked else 0
