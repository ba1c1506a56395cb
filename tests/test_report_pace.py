"""The page's curves of how training went."""

import json
from pathlib import Path

from gradelora.report import write_report
from gradelora.report.pace import curves
from tests.test_report import given


def line(step: int, **figures: float) -> str:
    return json.dumps({"step": step, "steps": 2, "seconds": 1.0, **figures}) + "\n"


def test_each_figure_of_a_step_has_a_curve_and_a_step_trained_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    told = line(1, loss=2, learning_rate=1e-4, grad_norm=3, tokens_per_s=10, peak_memory_bytes=2e9)
    again = line(1, loss=2, learning_rate=1e-4, grad_norm=3, tokens_per_s=20, peak_memory_bytes=2e9)
    last = line(2, loss=1, learning_rate=2e-4, grad_norm=2, tokens_per_s=40, peak_memory_bytes=3e9)
    (tmp_path / "aside" / "progress.jsonl").write_text(told + again + line(1, validation_loss=2) + last)
    found = curves(tmp_path)
    assert [curve.title.split(",")[0] for curve in found] == [
        "Learning rate",
        "Gradient norm",
        "Tokens a second",
        "Peak memory of a process",
    ]
    speed = found[2].plot
    assert [x for x, _ in speed.train] == [50, 100]
    assert [tick.label for tick in speed.y_ticks] == ["20", "25", "30", "35", "40"]


def test_the_page_shows_them_where_training_left_its_progress(tmp_path: Path) -> None:
    run = given(tmp_path)
    title = "Tokens a second by optimizer step"
    assert title not in write_report(run, tmp_path).read_text(encoding="utf-8")
    (run.adapter.path / "aside").mkdir()
    (run.adapter.path / "aside" / "progress.jsonl").write_text(line(1, loss=2, tokens_per_s=10))
    assert title in write_report(run, tmp_path).read_text(encoding="utf-8")
