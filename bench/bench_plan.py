"""What the plan predicts beside what training on this CPU then takes.

    python -m bench.bench_plan [--measured FILE] [CASE ...]
"""

import argparse
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.plan_cases import CASES, Case, described, save_answers, save_model
from gradelora.config import Runtime
from gradelora.train import train
from gradelora.train.seals import FOLDER, MANIFEST
from tests.tiny_data import snapshot_of


def measure(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """Train for two steps: peak RSS of rank 0, bytes of a sealed checkpoint and of the adapter, steps, tokens."""
    data = save_answers(folder / "data", case, described(model).config["vocab_size"])
    out, largest, over = folder / "out", [0], threading.Event()
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
    lines = [json.loads(line) for line in (out / "aside" / "progress.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    return {
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in trained),
        "checkpoint_bytes": largest[0],
        "adapter_bytes": adapter.total_bytes,
        "files": {f.name: f.size for f in adapter.files},
        "steps": adapter.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="keep measurements here, and measure only what is missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(options.measured.read_text()) if options.measured and options.measured.exists() else {}
        for number, case in enumerate(CASES):
            model = Path(folder) / case.model
            if not model.exists():
                save_model(case.model, model)
            if case.name not in found:
                (Path(folder) / str(number)).mkdir()
                found[case.name] = measure(case, model, Path(folder) / str(number))
                if options.measured:
                    options.measured.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
