"""What the UI shows of a run beside its log: figures and hashes, never student text.

Every task shows its own, also where its artifact was cached.  A picture is not worth a run: what
the server cannot draw is a warning.
"""

import base64
import functools
import socket
import time
from collections.abc import Callable
from typing import ParamSpec, cast
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from gradelora.artifacts import Adapter, ModelSnapshot
from gradelora.config import Runtime
from gradelora.hub import HubClient
from gradelora.outcome import Outcome
from gradelora.progress import share_done
from gradelora.report.plots import LinePlot, Point, loss_plot
from gradelora.report.sources import read_history
from gradelora.validate.codes import BY_NAME
from gradelora.validate.findings import Findings

P = ParamSpec("P")
AT_MOST_EVERY_S = 3.0
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 56, 26


def a_picture(show: Callable[P, None]) -> Callable[P, None]:
    """Whatever goes wrong while it is drawn is a warning in the run's log."""

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except Exception as error:
            get_run_logger().warning("not shown in the UI (%s): %s", show.__name__, error)

    return shown


class Progress:
    """A stage's lines in the run's log, and how far it is as a progress artifact."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._artifact: UUID | None = None
        self._last, self._next = "", 0.0

    def __call__(self, line: str) -> None:
        """One line that the stage printed."""
        get_run_logger().info(line)
        self._last = line
        share = share_done(line)
        if share is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + AT_MOST_EVERY_S
            self._show(round(100 * share, 1))

    def done(self) -> None:
        """The stage has ended well; nothing where it was cached."""
        if self._last:
            self._show(100.0)

    @a_picture
    def _show(self, percent: float) -> None:
        if self._artifact is None:
            created = create_progress_artifact(percent, key=self._key, description=self._last)
            self._artifact = cast("UUID", created)
        else:
            update_progress_artifact(self._artifact, percent, description=self._last)


@a_picture
def show_validation(name: str, findings: Findings) -> None:
    """Codes by file, with what to do: also of data that block the run."""
    whole = findings.data_set
    rows = [
        _finding(file.path, code, count, file.fault) for file in findings.files for code, count in file.codes.items()
    ]
    rows += [_finding("all files", code, count, whole.details.get(code)) for code, count in whole.codes.items()]
    sums = f"{whole.items} items of {whole.questions} questions, {whole.quarantined} quarantined, "
    verdict = "the run is blocked" if findings.blocked else "good to train on"
    splits = ", ".join(f"{n} {side.replace('_', ' ')}" for side, n in whole.splits.model_dump().items())
    rows.append({"where": "splits", "code": "", "level": "", "count": whole.items, "what": splits})
    described = f"Validation: {verdict}. {sums}{whole.withheld} withheld"
    create_table_artifact(rows, key=f"{name}-validation", description=described)


def _finding(where: str, code: str, count: int, fault: str | None) -> dict[str, str | int]:
    """One row: what is wrong where it blocks the run, else what to do."""
    known = BY_NAME[code]
    what = fault if fault and known.level == "error" else known.remedy
    return {"where": where, "code": code, "level": known.level, "count": count, "what": what}


@a_picture
def show_losses(name: str, adapter: Adapter) -> None:
    """The loss curve, and its last figures as text."""
    train, validation = read_history(adapter.path)
    if not train and not validation:
        return
    picture = base64.b64encode(_svg(loss_plot(train, validation)).encode()).decode()
    lines = [
        f"![training loss by optimizer step](data:image/svg+xml;base64,{picture})",
        "",
        "| | step | loss |",
        "|---|---|---|",
    ]
    for what, curve in (("training", train), ("validation split", validation)):
        if curve:
            lines += [f"| {what}, first | {curve[0][0]:.0f} | {curve[0][1]:.4f} |"]
            lines += [f"| {what}, last | {curve[-1][0]:.0f} | {curve[-1][1]:.4f} |"]
    described = f"Loss on the targets' tokens over {adapter.steps} steps, dashed on the validation split"
    create_markdown_artifact("\n".join(lines), key=f"{name}-loss", description=described)


@a_picture
def show_links(outcome: Outcome, snapshot: ModelSnapshot, runtime: Runtime) -> None:
    """Where the report lies on the worker's disk, and a link to the very commit of the base model."""
    page, host = outcome.page.absolute(), socket.gethostname()
    # No link: a browser opens no file:// address from a page of a server.  The page itself stays where it is,
    # for it may show student text.
    text = f"`{page}` on {host}. To your desk: `scp {host}:{page} .`"
    create_markdown_artifact(text, key=f"{outcome.name}-report", description="Where the report lies")
    commit = f"{HubClient(runtime).endpoint}/{snapshot.repo_id}/tree/{snapshot.commit}"
    create_link_artifact(commit, snapshot.repo_id, key=f"{outcome.name}-base-model", description=snapshot.commit)


def _svg(plot: LinePlot) -> str:
    """Two curves with their axes; text in one colour that is read on light and dark ground."""

    def x(at: float) -> float:
        return round(LEFT + at / 100 * (WIDTH - LEFT - 12), 1)

    def y(at: float) -> float:
        return round(10 + at / 100 * (HEIGHT - BOTTOM - 10), 1)

    def curve(points: tuple[Point, ...], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(f"{x(a)},{y(b)}" for a, b in points)}"/>'

    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y(t.at)}" y2="{y(t.at)}" stroke="#888" stroke-opacity=".3"/>'
        f'<text x="{LEFT - 6}" y="{y(t.at) + 4}" text-anchor="end">{t.label}</text>'
        for t in plot.y_ticks
    ]
    grid += [f'<text x="{x(t.at)}" y="{HEIGHT - 6}" text-anchor="middle">{t.label}</text>' for t in plot.x_ticks]
    curves = curve(plot.train, 'stroke="#2f6feb" stroke-width="2"')
    if plot.validation:
        curves += curve(plot.validation, 'stroke="#d1540a" stroke-width="2" stroke-dasharray="5 4"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="#888">{"".join(grid)}{curves}</svg>'
    )
