"""The plan as it is kept: what was foretold for which configuration, to be held against what happens."""

import os
import time
from pathlib import Path

from gradelora.artifacts import Frozen
from gradelora.config import RunConfig
from gradelora.preflight.plan import Plan
from gradelora.store import Store

FOLDER = "plans"


class KeptPlan(Frozen):
    """One plan with what it was made for."""

    made_at: str
    run: RunConfig
    plan: Plan


def keep(run: RunConfig, plan: Plan) -> Path:
    """Write the plan to the store, readable by its owner alone; where it lies.  Raises OSError."""
    now = time.gmtime()
    kept = KeptPlan(made_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", now), run=run, plan=plan)
    folder = Store(run.store.root).root / FOLDER
    folder.mkdir(exist_ok=True, mode=0o700)
    # Two runs of one name may start within a second.
    path = folder / f"{run.name}-{time.strftime('%Y%m%dT%H%M%SZ', now)}-{os.getpid()}.json"
    part = path.with_suffix(".part")
    part.write_text(kept.model_dump_json(indent=1), encoding="utf-8")
    part.chmod(0o600)
    part.replace(path)
    return path
