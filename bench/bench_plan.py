"""What the plan predicts beside what training on this CPU then takes.

python -m bench.bench_plan [--measured FILE] [CASE ...]
"""

import argparse
import json
import statistics
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.plan_cases import CASES, UNSEEN, Case, described, save_answers, save_model
from gradelora.artifacts import EncodedDataset
from gradelora.config import Runtime
from gradelora.config_file import build_config
from gradelora.hardware import preset
from gradelora.preflight.disk import adapter_bytes, checkpoint_bytes
from gradelora.preflight.later import plan_loading
from gradelora.preflight.measured import trained
from gradelora.preflight.memory import Row, plan_memory
from gradelora.preflight.size import size_of
from gradelora.preflight.workload import workload_of
from gradelora.train import train
from gradelora.train.seals import FOLDER, MANIFEST
from tests.tiny_data import snapshot_of


def measure(case: Case, model: Path, data: EncodedDataset, out: Path) -> dict[str, int]:
    """Train for two steps: peak RSS of rank 0, bytes of a sealed checkpoint and of the adapter, steps, tokens."""
    largest, over = [0], threading.Event()
    out.mkdir()

    def watch() -> None:
        # Training removes its checkpoints when the adapter is there.
        while not over.wait(0.02):
            for manifest in (out / FOLDER).glob(f"step-*/{MANIFEST}"):
                try:
                    size = sum(p.stat().st_size for p in manifest.parent.rglob("*") if p.is_file())
                except FileNotFoundError:
                    continue
                largest[0] = max(largest[0], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        adapter = train(case.config, snapshot_of(model), data, out=out, runtime=Runtime(threads=1))
    finally:
        over.set()
        watcher.join()
    found = trained(out)
    assert found is not None, "a training that ended well has told of its steps"
    return {
        "peak_memory_bytes": found.peak_bytes,
        "checkpoint_bytes": largest[0],
        "adapter_bytes": adapter.total_bytes,
        "steps": adapter.steps,
        "tokens": found.tokens,
    }


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
    base = described(model)
    size = size_of(base, case.config.lora)
    run = build_config(
        {
            "name": "bench",
            "base": {"repo_id": "bench/model"},
            "data": {"files": ["none"]},
            "encode": {"layout": "harmony"},
            "train": case.config.model_dump(mode="json"),
            "store": {"root": str(data.path)},
        }
    )
    work = workload_of(run, None, data)
    training = plan_memory(case.config, Row(work.row_tokens, work.positions), size, preset("cpu"))
    loading = plan_loading(case.config, size, preset("cpu"))
    assert work.steps is not None
    return {
        "peak_memory_bytes": max(sum(n.bytes for n in p.needs) for p in (training, loading)),
        "checkpoint_bytes": checkpoint_bytes(case.config, size),
        "adapter_bytes": adapter_bytes(case.config, size, base, work.steps),
        "steps": work.steps,
        "tokens": work.train_tokens or 0,
    }


def print_lines(lines: list[Line]) -> None:
    """Every figure, then how far memory and disk are off."""
    table = Table("case", "figure", "predicted", "measured", "off by")
    for line in lines:
        scale, unit = (1e6, " MB") if line.figure.endswith("bytes") else (1, "")
        digits = 1 if unit else 0
        figures = (f"{value / scale:,.{digits}f}{unit}" for value in (line.predicted, line.measured))
        table.add_row(line.case, line.figure.removesuffix("_bytes"), *figures, f"{line.error:+.1%}")
    Console(width=120).print(table)
    for figure in ("peak_memory_bytes", "checkpoint_bytes", "adapter_bytes", "steps", "tokens"):
        errors = [abs(line.error) for line in lines if line.figure == figure]
        print(f"{figure}: off by {statistics.median(errors):.1%} at the median, {max(errors):.1%} at the worst")


def main() -> None:
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
            for figure, predicted in predict(case, model, data).items():
                lines.append(Line(case.name, figure, predicted, found[case.name][figure]))
    print_lines(lines)


if __name__ == "__main__":
    main()
