"""Training's figures to TensorBoard, W&B, MLflow or Trackio, as one run over all attempts.

transformers' own callbacks are not used: they begin a new run after every kill, show the steps
since the last seal twice, and upload this machine's paths with the Trainer's arguments.
Addresses and tokens come from each service's own environment variables alone.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gradelora.artifacts import ASIDE
from gradelora.train.job import Job

PROJECT = "gradelora"
TENSORBOARD = "tensorboard"
MLFLOW_RUN = "mlflow-run.txt"


class Tracker(Protocol):
    """One service that shows figures by step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of one step."""

    def close(self) -> None:
        """Everything that was logged is there."""


class TensorBoard:
    """Event files under `aside/tensorboard`; steps that are trained again replace what a killed attempt wrote."""

    def __init__(self, job: Job, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = job.out / ASIDE / TENSORBOARD
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step or folder.exists() else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One scalar a figure."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()


class _Run:
    """What W&B and Trackio have in common."""

    run: Any

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """All figures of the step at once."""
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        """Upload or write the rest."""
        self.run.finish()


class WeightsAndBiases(_Run):
    """The run whose id is the training's own; it goes on there after a kill.

    A step that was there before is left as it is: it has the same figures.
    """

    def __init__(self, job: Job, step: int) -> None:  # noqa: ARG002
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_name(job),
            resume="allow",
            config=_settings(job),
            dir=str(job.out / ASIDE),
            # The ranks' log stays here.
            settings=wandb.Settings(console="off"),
        )


class MLflow:
    """The run whose id stands in `aside/`; without MLFLOW_TRACKING_URI its database lies there, too."""

    def __init__(self, job: Job, step: int) -> None:  # noqa: ARG002
        import mlflow

        self.mlflow = mlflow
        noted = job.out / ASIDE / MLFLOW_RUN
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{job.out / ASIDE / 'mlflow.db'}")
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            mlflow.set_experiment(PROJECT)
        if noted.exists():
            mlflow.start_run(run_id=noted.read_text())
        else:
            noted.write_text(mlflow.start_run(run_name=_name(job)).info.run_id)
            mlflow.log_params({name: str(value) for name, value in _settings(job).items()})

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One metric a figure."""
        self.mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """The run is finished."""
        self.mlflow.end_run()


class Trackio(_Run):
    """The run that has the training's own name; kept on this machine."""

    def __init__(self, job: Job, step: int) -> None:  # noqa: ARG002
        import trackio

        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=_name(job), resume="allow", config=_settings(job)
        )


TRACKERS: dict[str, Callable[[Job, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


class Trackers:
    """All that `runtime.report_to` names.  One that fails is told of and left out: training goes on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open: dict[str, Tracker] = {}

    def begin(self, step: int) -> None:
        """`step` is the last that is already trained."""
        for name in self.job.report_to:
            self._try(name, functools.partial(self._begin, name, step))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """To each."""
        for name, tracker in tuple(self.open.items()):
            self._try(name, functools.partial(tracker.log, step, figures))

    def end(self) -> None:
        """Close each."""
        for name, tracker in tuple(self.open.items()):
            self._try(name, tracker.close)

    def _begin(self, name: str, step: int) -> None:
        self.open[name] = TRACKERS[name](self.job, step)

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            # Whatever a service's client raises: hours of training are worth more than a curve.
            self.open.pop(name, None)
            print(f"warning: {name} is not reported to any more: {type(error).__name__}: {error}", flush=True)


def _name(job: Job) -> str:
    """The same for every attempt of one training."""
    return f"{job.repo_id.rpartition('/')[2]}-{job.identity[:12]}"


def _settings(job: Job) -> dict[str, Any]:
    """What was trained: no path and no name of this machine."""
    return {**job.config.model_dump(mode="json"), "base": f"{job.repo_id}@{job.commit}", "data": job.data.digest}
