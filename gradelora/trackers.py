"""Services that show training's figures beside the JSON lines: which there are, and whether they are installed."""

import importlib.util
from collections.abc import Iterable

from gradelora.errors import MissingTool

# By `runtime.report_to`: the module that is imported, and what brings it.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio", "trackio"),
}


def check_trackers(names: Iterable[str]) -> None:
    """Raise MissingTool, with the line that mends it, where a configured service cannot be reported to."""
    missing = [name for name in names if importlib.util.find_spec(PACKAGES[name][0]) is None]
    if missing:
        packages = " ".join(PACKAGES[name][1] for name in missing)
        raise MissingTool(
            f"runtime.report_to names {', '.join(missing)}, which this Python does not have; "
            f"pip install {packages}, or take it out of runtime.report_to"
        )
