"""How numbers are written, on the page and in the card."""

from gradelora.artifacts import Interval


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """`0.71`, `-0.03` with a true minus sign, `n/a`."""
    if value is None:
        return "n/a"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    # -0.00 says nothing that 0.00 does not.
    if float(text) == 0:
        text = text.replace("-", "+" if signed else "")
    return text.replace("-", "−")


def span(figure: Interval, digits: int = 2) -> str:
    """`0.65 to 0.77`, or nothing where there is no interval."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low, digits)} to {number(figure.high, digits)}"


def points(value: float) -> str:
    """A score: `3`, `3.5`."""
    return f"{value:g}"


def gigabytes(count: float) -> str:
    """Decimal gigabytes, megabytes where that says more."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: int) -> str:
    """Thousands apart: `5,971,968`."""
    return f"{value:,}"
