"""The plan beside what happened, as the page's tables write it."""

from dataclasses import dataclass

from gradelora.report.compared import Compared, Comparison, Kind, cost_of
from gradelora.report.figures import count, duration, gigabytes, number

TITLES: dict[Kind, str] = {"memory": "Memory at its peak", "work": "Work", "disk": "Disk", "time": "Time"}


@dataclass(frozen=True)
class Line:
    """One figure; `mark` is empty where there is nothing to compare."""

    stage: str
    figure: str
    planned: str
    span: str
    measured: str
    built: str
    error: str
    mark: str
    cost: tuple[str, str] | None
    source: str
    cached: bool


@dataclass(frozen=True)
class Table:
    """The figures of one kind."""

    title: str
    priced: bool
    lines: tuple[Line, ...]


def tables_of(comparison: Comparison, price_per_hour: float | None) -> list[Table]:
    """One table a kind, in the order of TITLES; a kind without figures has none."""
    found = []
    for kind, title in TITLES.items():
        price = price_per_hour if kind == "time" else None
        lines = tuple(_line(each, price) for each in comparison.figures if each.kind == kind)
        if lines:
            found.append(Table(title, price is not None, lines))
    return found


def _line(each: Compared, price_per_hour: float | None) -> Line:
    has_interval = each.low is not None and each.high is not None
    return Line(
        stage=each.stage,
        figure="" if each.kind == "time" else each.figure,
        planned=_spelled(each, each.planned),
        span=f"{_spelled(each, each.low or 0)} to {_spelled(each, each.high or 0)}" if has_interval else "",
        measured=_spelled(each, each.measured),
        built=f"{duration(each.built_s)} when built" if each.built_s is not None else "",
        error="" if each.error is None else f"{number(100 * each.error, 0, signed=True)} %",
        mark="" if each.held is None else ("good" if each.held else "warn"),
        cost=None if price_per_hour is None else _costs(each, price_per_hour),
        source=each.source,
        cached=each.cached,
    )


def _costs(each: Compared, price_per_hour: float) -> tuple[str, str]:
    planned, measured = cost_of(each, price_per_hour)
    return f"{planned:.2f}", f"{measured:.2f}"


def _spelled(each: Compared, value: float) -> str:
    if each.kind == "time":
        return duration(value)
    return count(round(value)) if each.kind == "work" else _bytes(value)


def _bytes(value: float) -> str:
    return gigabytes(value) if value >= 10e6 else f"{value / 1e3:,.0f} kB"
