"""What the plan predicts beside what training on this CPU then takes.

python -m bench.bench_plan [--measured FILE]

Exit code 1 where the plan is further off than it may be.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.plan_cases import CASES, UNSEEN, Case, described, save_answers, save_model
from gradelora import child
from gradelora.artifacts import ASIDE, EncodedDataset
from gradelora.config import Runtime
from gradelora.evaluate import evaluate
from gradelora.hardware import preset
from gradelora.merge import merge
from gradelora.preflight.disk import adapter_bytes, checkpoint_bytes
from gradelora.preflight.later import plan_evaluation, plan_loading
from gradelora.preflight.measured import trained
from gradelora.preflight.memory import Row, plan_memory
from gradelora.preflight.size import size_of
from gradelora.preflight.workload import workload_of
from gradelora.train import train
from gradelora.train.seals import FOLDER, MANIFEST
from tests.tiny_data import snapshot_of

# What is held to which error, at the median and at the worst.
AIMS = {
    "memory": (("peak_memory_bytes", "evaluate_memory_bytes"), 0.1, 0.2),
    "disk": (("checkpoint_bytes", "adapter_bytes", "merged_bytes"), 0.02, 0.02),
    "steps and tokens": (("steps", "tokens"), 0.0, 0.0),
}


def measure(case: Case, model: Path, data: EncodedDataset, out: Path) -> dict[str, int]:
    """Train for two steps, then what `case.later` names: peaks of the fullest process, bytes on disk, steps, tokens."""
    snapshot, runtime = snapshot_of(model), Runtime(threads=1)
    out.mkdir()
    with Watch(out / FOLDER) as seen:
        adapter = train(case.config, snapshot, data, out=out, runtime=runtime)
    found = trained(out)
    assert found is not None, "a training that ended well has told of its steps"
    figures = {
        "peak_memory_bytes": max(found.peak_bytes, seen.peak_bytes),
        "checkpoint_bytes": seen.checkpoint_bytes,
        "adapter_bytes": adapter.total_bytes,
        "steps": adapter.steps,
        "tokens": found.tokens,
    }
    run, report = case.run, None
    if "evaluate" in case.later:
        report = child.call(evaluate, run.evaluate, snapshot, adapter, data, out=out / "e", runtime=runtime)
        figures["evaluate_memory_bytes"] = _peak(out / "e")
    if "merge" in case.later and report is not None:
        inputs = (snapshot, adapter, report, data)
        merged = child.call(merge, run.merging, *inputs, out=out / "m", runtime=runtime)
        # Its memory is mapped files for the most part, which the kernel takes back when it must.
        figures["merged_bytes"] = merged.total_bytes
    return figures


def _peak(out: Path) -> int:
    """Of the largest process of a stage that ran in a child."""
    return child.Usage.model_validate_json((out / ASIDE / child.USAGE).read_text()).peak_rss_bytes


class Watch:
    """Looks at a training from outside: the largest sealed checkpoint, which is removed at the end, and every rank."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints, self.checkpoint_bytes, self.peak_bytes = checkpoints, 0, 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=each) for each in ((self._sizes, 0.02),
                                                                                       (self._peaks, 0.2))]  # fmt: skip

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, look: Callable[[], None], pause_s: float) -> None:
        while not self._over.wait(pause_s):
            # What is looked at may be gone in the next moment.
            with contextlib.suppress(OSError):
                look()

    def _sizes(self) -> None:
        for manifest in self.checkpoints.glob(f"step-*/{MANIFEST}"):
            size = sum(p.stat().st_size for p in manifest.parent.rglob("*") if p.is_file())
            self.checkpoint_bytes = max(self.checkpoint_bytes, size)

    def _peaks(self) -> None:
        """VmHWM (proc(5)) of the processes that were told of this training."""
        told = str(self.checkpoints.parent).encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if told in (process / "cmdline").read_bytes():
                    peak = (process / "status").read_text().split("VmHWM:")[1].split()[0]
                    self.peak_bytes = max(self.peak_bytes, 1024 * int(peak))


@dataclass(frozen=True)
class Line:
    """One figure of one case: predicted and measured."""

    case: str
    figure: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Share of the measured value; positive where too much was predicted."""
        return self.predicted / self.measured - 1


def predict(case: Case, model: Path, data: EncodedDataset) -> dict[str, int]:
    """What `gradelora plan` says of the same run."""
    base, run = described(model), case.run
    size = size_of(base, case.config.lora)
    work = workload_of(run, None, data)
    training = plan_memory(case.config, Row(work.row_tokens, work.positions), size, preset("cpu"))
    loading = plan_loading(case.config, size, preset("cpu"))
    assert work.steps is not None
    return {
        "peak_memory_bytes": max(training.process_bytes, loading.process_bytes),
        "checkpoint_bytes": checkpoint_bytes(case.config, size, base),
        "adapter_bytes": adapter_bytes(case.config, size, base, work.steps),
        "steps": work.steps,
        "tokens": work.train_tokens or 0,
        "evaluate_memory_bytes": plan_evaluation(run, work, size, preset("cpu")).process_bytes,
        "merged_bytes": size.bf16_bytes,
    }


def print_lines(lines: list[Line]) -> bool:
    """Every figure, how far memory, disk and work are off, and whether the aims are held."""
    table = Table("case", "figure", "predicted", "measured", "off by")
    for line in lines:
        scale, unit = (1e6, " MB") if line.figure.endswith("bytes") else (1, "")
        digits = 1 if unit else 0
        figures = (f"{value / scale:,.{digits}f}{unit}" for value in (line.predicted, line.measured))
        table.add_row(line.case, line.figure.removesuffix("_bytes"), *figures, f"{line.error:+.1%}")
    Console(width=120).print(table)
    held = True
    for kind, (figures_of_it, median, worst) in AIMS.items():
        errors = [abs(line.error) for line in lines if line.figure in figures_of_it]
        found = statistics.median(errors), max(errors)
        kept = found[0] <= median and found[1] <= worst
        held &= kept
        print(
            f"aim: {kind} within {median:.0%} at the median, {worst:.0%} at the worst: {'held' if kept else 'missed'}, "
            f"{found[0]:.1%} and {found[1]:.1%} of {len(errors)}"
        )
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="keep measurements here, and measure only what is missing")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(options.measured.read_text()) if options.measured and options.measured.exists() else {}
        for number, case in enumerate((*CASES, *UNSEEN)):
            model, own = Path(folder) / case.model, Path(folder) / str(number)
            if not model.exists():
                save_model(case.model, model)
            data = save_answers(own / "data", case, described(model).config["vocab_size"])
            if case.name not in found:
                found[case.name] = measure(case, model, data, own / "out")
                if options.measured:
                    options.measured.write_text(json.dumps(found, indent=1))
            predicted = predict(case, model, data)
            lines += [Line(case.name, name, predicted[name], value) for name, value in found[case.name].items()]
    return 0 if print_lines(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
