"""What cannot change a result: where things lie, how fast and how patiently they are done."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gradelora.artifacts import Frozen


class StoreConfig(Frozen):
    """Where sealed artifacts are kept, and where a copy of them is."""

    root: Path
    mirror: str | None = Field(
        None,
        pattern=r"^(s3|gs|gcs|az|abfs|file)://[^?#\s]+$",
        description="an fsspec URL (s3://, gs://, az://, file://) to which sealed artifacts, checkpoints and the"
        " champion are copied; credentials come from the environment",
    )
    mirror_wait_s: float = Field(600, ge=0, description="how long a run's end waits for uploads")

    @field_validator("mirror")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and urlsplit(value).password is not None:
            raise ValueError("a mirror's URL holds no password; set the backend's environment variables, e.g. AWS_*")
        return value


class Runtime(Frozen):
    """What cannot change a result: part of no key."""

    hub_endpoint: str | None = Field(None, description="default: HF_ENDPOINT, then the Hub")
    hub_cache: Path | None = Field(None, description="default: HF_HUB_CACHE, then HF_HOME/hub")
    hub_timeout_s: float = Field(30, gt=0)
    hub_retries: int = Field(5, ge=0)
    fetch_engine: Literal["auto", "hf_transfer", "http", "xet", "stock"] = Field(
        "auto",
        description="auto: hf_transfer for large files where the cache's file system has holes, else http;"
        " stock: huggingface_hub's own client; xet: the same, refused where hf_xet cannot be used",
    )
    fetch_connections: int = Field(8, ge=1, le=64, description="of hf_transfer and http; hosts cap each one")
    fetch_stall_s: float = Field(30, gt=0, description="a connection that brings nothing for so long is replaced")
    encode_workers: int = Field(1, ge=1)
    dataloader_workers: int = Field(0, ge=0)
    evaluate_rows: int = Field(4, ge=1, description="rows a forward pass; memory, not results")
    evaluate_processes: int | None = Field(
        None,
        ge=1,
        description="each with a copy of the model and its share of the answers; default: one a GPU, 1 on CPU",
    )
    train_deadline_s: float = Field(7 * 24 * 3600, gt=0)
    seal_minutes: float = Field(
        15, gt=0, description="a checkpoint at least so often, beside train.save_every: what a kill loses at most"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads a process; default cores / processes")
    nodes: int = Field(1, ge=1, description="machines that train together, each running the same command")
    node_rank: int | None = Field(
        None, ge=0, description="of this machine; default: its line of hostfile, SLURM_NODEID or JOB_COMPLETION_INDEX"
    )
    rendezvous: str | None = Field(
        None, pattern=r"^[\w.-]+(:\d+)?$", description="HOST or HOST:PORT of node 0; default: the first of hostfile"
    )
    hostfile: Path | None = Field(None, description="a line `NAME slots=RANKS` a machine, node 0 first; tells nodes")
    node_timeout_s: float = Field(600, gt=0, description="how long the nodes wait for each other at the start")
    collective_timeout_s: float = Field(600, gt=0, description="an exchange between ranks that takes longer has failed")
    start_checkpoint: Path | None = Field(None, description="the folder that train.start_from names by its hash")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="training's figures also go there; their JSON lines are always in aside/progress.jsonl"
    )
    price_per_hour: float | None = Field(None, ge=0, description="of the whole machine, in your currency")
    budget_hours: float | None = Field(None, gt=0, description="training stops sealed at the last step that fits")
    budget_cost: float | None = Field(None, gt=0, description="the same in your currency; needs price_per_hour")

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget_cost is not None and not self.price_per_hour:
            raise ValueError("budget_cost needs the machine's price; set price_per_hour, or budget_hours instead")
        return self

    @property
    def budget_s(self) -> float | None:
        """Seconds that training may take, the smaller of the two budgets; None: no bound."""
        hours = [] if self.budget_hours is None else [self.budget_hours]
        if self.budget_cost is not None and self.price_per_hour:
            hours.append(self.budget_cost / self.price_per_hour)
        return 3600 * min(hours) if hours else None
