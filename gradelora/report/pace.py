"""How training went besides its loss: one curve for each figure of its progress.jsonl."""

import json
from dataclasses import dataclass
from pathlib import Path

from gradelora.artifacts import ASIDE
from gradelora.report.plots import LinePlot, loss_plot

PROGRESS = "progress.jsonl"
# By the name in the file: what the page calls it, and what one unit of the page is.
FIGURES = {
    "learning_rate": ("Learning rate", 1.0),
    "grad_norm": ("Gradient norm", 1.0),
    "tokens_per_s": ("Tokens a second", 1.0),
    "peak_memory_bytes": ("Peak memory of a process, GB", 1e9),
}


@dataclass(frozen=True)
class Curve:
    """A figure by optimizer step."""

    title: str
    plot: LinePlot


def curves(folder: Path) -> list[Curve]:
    """Those that were recorded in an Adapter's folder; of a step that was trained twice the last."""
    path = folder / ASIDE / PROGRESS
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found = []
    for name, (title, unit) in FIGURES.items():
        by_step = {float(line["step"]): float(line[name]) / unit for line in lines if line.get(name) is not None}
        if by_step:
            found.append(Curve(title, loss_plot(sorted(by_step.items()), ())))
    return found
