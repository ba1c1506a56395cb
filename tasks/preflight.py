"""Refuse what cannot work; never cached, for it measures this machine now."""

from prefect.artifacts import create_table_artifact

from gradelora.artifacts import BaseModel, DataFiles
from gradelora.config import RunConfig
from gradelora.hub import HubClient
from gradelora.preflight import Plan
from gradelora.preflight import preflight as stage
from gradelora.preflight.table import plan_rows
from gradelora.records import collect_data_files
from tasks.shown import a_picture
from tasks.stage import stage_task


@stage_task()
def collect(run: RunConfig) -> DataFiles:
    """The data files, by their bytes."""
    return collect_data_files(run.data.files)


@stage_task()
def preflight(run: RunConfig, base: BaseModel, data: DataFiles) -> Plan:
    """GPUs, memory, disk and tools: measured against needed; the UI shows a refused plan, too."""

    @a_picture
    def show(plan: Plan) -> None:
        what = f"What the run will need on {plan.hardware.name}"
        create_table_artifact(plan_rows(plan, run.runtime.price_per_hour), key=f"{run.name}-plan", description=what)

    return stage(run, base, data, HubClient(run.runtime).cache, show)
