"""The plan as a table for people."""

from rich.console import Console
from rich.table import Table

from gradelora.preflight import Plan
from gradelora.preflight.memory import GB


def print_plan(plan: Plan) -> None:
    """Memory of every mode side by side, then disk by file system."""
    console = Console()
    size = plan.size
    share = 100 * size.lora_parameters / size.parameters
    console.print(
        f"{size.parameters:,} parameters: {size.disk_bytes / GB:.2f} GB on disk, {size.bf16_bytes / GB:.2f} GB in bf16"
    )
    console.print(f"LoRA trains {size.lora_parameters:,} of them ({share:.4f} %)")
    memory = Table("mode", "GB needed", "GB there", "fits", "parts", title=f"Memory on {plan.hardware.name}")
    for row in (plan.memory, *plan.alternatives):
        parts = ", ".join(f"{n.what} {n.bytes / GB:.1f}" for n in row.needs)
        label = f"[bold]{row.mode}[/bold] (configured)" if row is plan.memory else row.mode
        needed, there = row.needed_bytes / GB, row.available_bytes / GB
        memory.add_row(
            label, f"{needed:.1f}", f"{there:.1f}", "yes" if row.fits else f"no, by {needed - there:.1f}", parts
        )
    console.print(memory)
    disk = Table("file system", "GB needed", "GB free", "fits", "parts", title="Disk")
    for system in plan.disk:
        parts = ", ".join(f"{n.what} {n.bytes / GB:.2f}" for n in system.needs)
        needed, free = system.needed_bytes / GB, system.free_bytes / GB
        disk.add_row(str(system.folder), f"{needed:.1f}", f"{free:.1f}", "yes" if system.fits else "no", parts)
    console.print(disk)
