"""The plan as text for people: aligned columns, nothing folded, so that an option can be copied."""

from collections.abc import Iterable, Sequence

from gradelora.preflight import Plan
from gradelora.preflight.clock import cost, total
from gradelora.preflight.memory import GB, MemoryPlan, Need
from gradelora.why import Foreseen


def print_plan(plan: Plan, price_per_hour: float | None) -> None:
    """Size and work, memory of every stage and mode, disk by file system, time and cost by stage."""
    size = plan.size
    share = 100 * size.lora_parameters / size.parameters
    for note in plan.notes:
        print(f"note: {note}")
    print(
        f"{size.parameters:,} parameters: {size.disk_bytes / GB:.2f} GB on disk, {size.bf16_bytes / GB:.2f} GB in bf16"
    )
    print(f"LoRA trains {size.lora_parameters:,} of them ({share:.4f} %)")
    if plan.work:
        work = plan.work
        print(f"lengths from {work.source}: {work.row_tokens:,} tokens in the largest row")
        if work.steps is not None:
            print(f"training{'' if work.exact else ', at most'}: {work.steps:,} steps, {work.train_tokens:,} tokens")
    _print_memory(plan)
    _print_modes(plan)
    _print_disk(plan)
    _print_times(plan, price_per_hour)


def plan_rows(plan: Plan, price_per_hour: float | None) -> list[dict[str, str]]:
    """Memory, disk and time as rows of one table: what, where, needed, there."""
    rows = []
    for need in (plan.memory, *plan.later):
        what = f"training, {need.mode}" if need is plan.memory else need.mode
        rows.append(_row(f"memory: {what}", need.device, amount(need.needed_bytes), amount(need.available_bytes)))
    for disk in plan.disk:
        rows.append(_row("disk", str(disk.folder), amount(disk.needed_bytes), amount(disk.free_bytes)))
    for time in (*plan.times, total(plan.times, bool(untimed(plan)))):
        interval = f"{spell(time.seconds)} ({spell(time.low_s)} to {spell(time.high_s)})"
        money = "" if price_per_hour is None else f"{cost(time.seconds, price_per_hour):.2f}"
        rows.append(_row(f"time: {time.stage}", time.source, interval, "", money))
    return rows


def _row(what: str, where: str, needed: str, there: str, money: str = "") -> dict[str, str]:
    return {"what": what, "where, or known from": where, "needed": needed, "there": there, "cost": money}


def print_why(stages: Iterable[Foreseen], notes: Iterable[str]) -> None:
    """One stage a line: cached, run or follows, and the causes."""
    for note in notes:
        print(f"note: {note}")
    for foreseen in stages:
        print(f"{foreseen.stage:17} {foreseen.state:8} {'; '.join(foreseen.causes)}")


def _print_memory(plan: Plan) -> None:
    rows = []
    for row in (plan.memory, *plan.later):
        label = f"training, {row.mode}" if row is plan.memory else row.mode
        times = f"{row.processes_per_device} x " if row.processes_per_device > 1 else ""
        parts = _parts(row.needs)
        rows.append(
            (
                label,
                row.device,
                amount(row.needed_bytes),
                amount(row.high_bytes),
                amount(row.available_bytes),
                _fits(row, row in plan.counted),
                times + parts,
            )
        )
    _print(f"memory on {plan.hardware.name}", ("stage", "on", "needed", "at the worst", "there", "fits", "parts"), rows)


def _print_modes(plan: Plan) -> None:
    rows = []
    for mode in plan.alternatives:
        tight = mode.tightest
        stage = "training" if tight is mode.stages[0] else tight.mode
        figures = (
            amount(mode.stages[0].needed_bytes),
            amount(tight.needed_bytes),
            amount(tight.available_bytes),
        )
        rows.append((mode.mode, *figures, stage, _fits(tight), mode.options))
    names = ("mode", "in training", "at its tightest", "there", "which is", "fits", "add")
    _print("other ways, the cheapest change first", names, rows)


def _print_disk(plan: Plan) -> None:
    rows = []
    for system in plan.disk:
        parts = _parts(system.needs)
        there = (
            ("not known here", "?") if plan.elsewhere else (amount(system.free_bytes), "yes" if system.fits else "no")
        )
        where = "of that machine" if plan.elsewhere else str(system.folder)
        rows.append((where, system.moment, amount(system.needed_bytes), *there, parts))
    _print("disk", ("file system", "worst moment", "needed", "free", "fits", "parts"), rows)


def _print_times(plan: Plan, price_per_hour: float | None) -> None:
    rows = []
    for row in (*plan.times, total(plan.times, bool(untimed(plan)))):
        money: tuple[str, ...] = ()
        if price_per_hour is not None:
            low, usual, high = (cost(s, price_per_hour) for s in (row.low_s, row.seconds, row.high_s))
            money = (f"{usual:.2f}", f"{low:.2f} to {high:.2f}")
        rows.append((row.stage, spell(row.seconds), f"{spell(row.low_s)} to {spell(row.high_s)}", *money, row.source))
    priced = ("cost", "between") if price_per_hour is not None else ()
    _print("time", ("stage", "time", "between", *priced, "known from"), rows)
    if untimed(plan):
        print(f"not known without data: {', '.join(untimed(plan))}")


def untimed(plan: Plan) -> list[str]:
    """Stages of which nothing is known yet."""
    return [f.stage for f in plan.stages if f.stage not in {t.stage for t in plan.times}]


def _print(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest entry; the last one is left as it is."""
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names) - 1)]
    for row in (names, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join([*cells, row[-1]]))


def _parts(needs: Iterable[Need]) -> str:
    return ", ".join(f"{n.what} {amount(n.bytes)}" for n in needs if n.bytes)


def amount(size: int) -> str:
    """`65.2 GB`, `12 MB`, `3 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}" if unit == "GB" else f"{size / scale:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _fits(row: MemoryPlan, runs: bool = True) -> str:
    if not runs:
        return "sealed"
    if row.fits:
        return "tight" if row.tight else "yes"
    return f"no, by {amount(row.lacking_bytes)}"


def spell(seconds: float) -> str:
    """`12 s`, `4 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
