"""Where the lines and marks of the plots lie; the templates draw them.

Coordinates are per cent of the plot's width and height, y downwards, so that text and marks
keep their size on every screen; rounded, so that the page is the same everywhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradelora.artifacts import Interval

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class LinePlot:
    """Two curves over steps with their axes' ticks."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    train: tuple[Point, ...]
    validation: tuple[Point, ...]


@dataclass(frozen=True)
class Whisker:
    """A mark with its interval on a horizontal strip; None where the figure is undefined."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Dot:
    """A bin of the reliability plot; its radius, in pixels, grows with the items in it."""

    x: float
    y: float
    radius: float
    items: int
    confidence: float
    accuracy: float


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if span / (s * magnitude) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def loss_plot(train: Sequence[Point], validation: Sequence[Point]) -> LinePlot:
    """Curves of (step, loss); the axes begin where the data does, in round numbers."""
    steps = [x for x, _ in (*train, *validation)] or [0.0, 1.0]
    losses = [y for _, y in (*train, *validation)] or [0.0, 1.0]
    # Steps are whole: no tick between two of them.
    xs = [t for t in ticks(0, max(steps), 6) if t == round(t)]
    ys = ticks(min(losses), max(losses))

    def x(step: float) -> float:
        return round(100 * step / max(xs[-1], 1), 2)

    def y(loss: float) -> float:
        return round(100 * (ys[-1] - loss) / max(ys[-1] - ys[0], 1e-9), 2)

    return LinePlot(
        x_ticks=tuple(Tick(x(t), f"{t:g}") for t in xs),
        y_ticks=tuple(Tick(y(t), f"{t:.4g}") for t in ys),
        train=tuple((x(s), y(v)) for s, v in train),
        validation=tuple((x(s), y(v)) for s, v in validation),
    )


def whisker(figure: Interval, low: float, high: float) -> Whisker | None:
    """A figure on a strip that shows [low, high]; what lies outside is drawn at the edge."""
    if figure.value is None:
        return None

    def at(value: float | None) -> float:
        shown = figure.value if value is None else value
        assert shown is not None
        return round(100 * (min(max(shown, low), high) - low) / (high - low), 2)

    return Whisker(at=at(figure.value), low=at(figure.low), high=at(figure.high))


def reliability(bins: Sequence[tuple[float | None, float | None, int]]) -> tuple[Dot, ...]:
    """Dots of (mean confidence, accuracy, items) in a square; bins without items are left out."""
    most = max((items for _, _, items in bins), default=1)
    return tuple(
        Dot(
            x=round(100 * confidence, 2),
            y=round(100 * (1 - accuracy), 2),
            radius=round(2.5 + 6 * math.sqrt(items / max(most, 1)), 1),
            items=items,
            confidence=confidence,
            accuracy=accuracy,
        )
        for confidence, accuracy, items in bins
        if confidence is not None and accuracy is not None
    )
