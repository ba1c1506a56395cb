"""What was measured as findings: ok, or what to do about it."""

from collections.abc import Iterator

from gradelora.calibration import Device
from gradelora.doctor import Finding
from gradelora.doctor.probe import Probed
from gradelora.doctor.step import Stepped
from gradelora.hardware import Roofline
from gradelora.preflight.table import amount

# Parts of a data sheet below which something is wrong with the machine, not with the program.
LEAST_PRODUCT, LEAST_COPY = 0.4, 0.5
# The plan's memory is held to this (bench/bench_plan.py).
MEMORY_OFF = 0.2


def probe_findings(found: Probed, sheet: Roofline | None) -> Iterator[Finding]:
    """The layer, then the three rates, against the data sheet where the GPU is known."""
    where = found.gpu or "this CPU"
    same = f"{found.compared:,} values equal bit for bit, packed against dequantised; {found.layer_s * 1e3:.0f} ms"
    differs = f"packed differs from dequantised: {', '.join(found.differs)}"
    yield Finding(
        check="layer",
        ok=not found.differs,
        found=differs if found.differs else f"2880 x 5760 on {where}: {same}",
        remedy="set train.weights=bf16 with train.parallel=zero3, and report versions and GPU as an issue",
    )
    rates = (
        ("matrix product", found.product_operations_per_s, sheet.operations if sheet else 0, LEAST_PRODUCT, "FLOP/s"),
        ("memory", found.memory_bytes_per_s, sheet.memory_bytes if sheet else 0, LEAST_COPY, "B/s"),
        ("unpacking", found.unpacked_per_s, 0, 0, " weights/s"),
    )
    for check, rate, most, least, unit in rates:
        part = f", {rate / most:.0%} of the data sheet" if most else ""
        yield Finding(
            check=check,
            ok=rate >= least * most,
            found=f"{_scaled(rate)}{unit}{part}",
            remedy="another program uses it, or it is throttled: look at `nvidia-smi -q -d CLOCK,UTILIZATION`",
        )


def _scaled(rate: float) -> str:
    """`1.23 T`, `41.5 G`, `120 M`."""
    if rate >= 1e12:
        return f"{rate / 1e12:.2f} T"
    return f"{rate / 1e9:.1f} G" if rate >= 1e9 else f"{rate / 1e6:.0f} M"


def step_findings(found: Stepped, device: Device) -> Iterator[Finding]:
    """Memory and time of a training beside the plan's."""
    off = found.planned_bytes / found.peak_bytes - 1
    peak = "allocated on a GPU" if device == "cuda" else "of a rank"
    lacking = found.peak_bytes / found.planned_bytes - 1
    yield Finding(
        check="step memory",
        ok=abs(off) <= MEMORY_OFF,
        found=f"{amount(found.peak_bytes)} {peak} at the peak, {amount(found.planned_bytes)} planned ({off:+.0%})",
        remedy=f"plans are off by as much here: keep {lacking:.0%} more free than they ask"
        if lacking > 0
        else "plans ask for more than is needed here: a refusal may be too strict",
    )
    low, _, high = found.planned_s
    steps = f"{found.short_s:.3f} s at {found.short_tokens} tokens a row, {found.long_s:.3f} s at {found.long_tokens}"
    rate = "" if found.operations_per_s is None else f"; {found.operations_per_s / 1e12:.3f} TFLOP/s a rank beyond that"
    yield Finding(
        check="training step",
        ok=found.ended and found.operations_per_s is not None and found.seconds <= high,
        found=f"{steps}{rate}; {found.seconds:.0f} s in all, {low:.0f} to {high:.0f} s planned",
        remedy="the machine was busy with something else: end it and run this again",
    )
