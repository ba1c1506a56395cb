"""What the tests of training share: a run small enough to be repeated, and a way to look at it while it goes on."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradelora.artifacts import Adapter, EncodedDataset
from gradelora.config import LoraSettings, Runtime, TrainConfig
from gradelora.train.job import Job

RUNTIME = Runtime(threads=1)
# 4 questions x 3 rows x 4 epochs in steps of 2 ranks x 2 rows: 12 steps, a checkpoint every 3.
CONFIG = TrainConfig(
    device="cpu",
    precision="fp32",
    answers_per_row=4,
    accumulation=2,
    epochs=4,
    learning_rate=5e-3,
    reduce_bucket_elements=100_000,
    lora=LoraSettings(dropout=0.1),
)
STEPS, SAVED_EVERY = 12, 3


def changed(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | values)


def history(adapter: Adapter) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((adapter.path / "history.json").read_text())
    return found


def progress(out: Path) -> list[dict[str, float]]:
    path = out / "aside" / "progress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def job(out: Path, data: EncodedDataset, **values: Any) -> Job:
    facts: dict[str, Any] = {
        "config": CONFIG,
        "snapshot": out,
        "repo_id": "a/b",
        "commit": "c",
        "data": data,
        "out": out,
        "dataloader_workers": 0,
        "evaluate_rows": 4,
        "budget_s": 100,
        "spent_s": 0,
        "started": time.monotonic(),
        "report_to": (),
        "launcher_pid": 1,
    }
    return Job.model_validate(facts | values)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "aside" / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def ranks_of(out: Path) -> list[int]:
    """Pids of all living ranks of this run: what carries its job file and is no launcher."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        module = line[line.index("-m") + 1] if "-m" in line else ""
        if module == "gradelora.train.rank" and str(out / "aside" / "job.json") in line:
            found.append(int(folder.name))
    return sorted(found)


def when(condition: Callable[[], bool], act: Callable[[], None], timeout_s: float = 600) -> threading.Thread:
    """Do `act` in a thread as soon as `condition` holds, never else."""

    def watch() -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and not condition():
            time.sleep(0.01)
        if condition():
            act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and not condition():
        time.sleep(0.05)
    return condition()
