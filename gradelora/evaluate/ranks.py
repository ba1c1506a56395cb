"""Several processes judge the held-out items, each with a model of its own and a share of the passes.

The passes are formed before they are shared out, so the predictions are the same bytes whatever
the number of processes.  They do not talk to each other: a file each is all that is merged.
"""

import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gradelora import child, launch
from gradelora.artifacts import ASIDE, Adapter, Artifact, EncodedDataset, Frozen, ModelSnapshot
from gradelora.config import EvaluateConfig, Runtime
from gradelora.errors import NotEnoughGpus
from gradelora.hardware import gpu_bytes

if TYPE_CHECKING:
    from gradelora.evaluate.judging import Judged

FILE = "judged.jsonl"


class ShareConfig(Frozen):
    """One rank's part of the evaluation."""

    evaluate: EvaluateConfig
    rank: int
    ranks: int


class Share(Artifact):
    """judged.jsonl: the items that one rank judged."""


def process_count(config: EvaluateConfig, runtime: Runtime, items: int) -> int:
    """How many processes: as asked for, else one a GPU or one on CPU; no more than there are items.

    Raises NotEnoughGpus.
    """
    gpus = len(gpu_bytes()) if config.device == "cuda" else 0
    wanted = runtime.evaluate_processes or max(1, gpus)
    if config.device == "cuda" and wanted > max(1, gpus):
        raise NotEnoughGpus(
            f"runtime.evaluate_processes={wanted}, but this machine has {gpus} CUDA GPUs; lower it, or leave it out"
        )
    return min(wanted, items)


def judge_share(
    config: ShareConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: EncodedDataset,
    *,
    out: Path,
    runtime: Runtime,
) -> Share:
    """What one rank has to do, in its own process, on the GPU of its number."""
    from gradelora.evaluate.judging import ask_both
    from gradelora.scoring.held_out import read_held_out
    from gradelora.scoring.load import load_both

    if config.evaluate.device == "cuda":
        import torch

        torch.cuda.set_device(config.rank)

    def say(line: str) -> None:
        print(f"evaluate: {f'rank {config.rank}: ' if config.ranks > 1 else ''}{line}", flush=True)

    settings = config.evaluate
    say(f"loading {snapshot.repo_id} ({settings.weights}, {settings.precision}) and the adapter")
    model = load_both(snapshot, adapter, weights=settings.weights, precision=settings.precision, device=settings.device)
    items = read_held_out(data, settings.splits)
    judged = ask_both(
        model, items, data, rows_per_pass=runtime.evaluate_rows, rank=config.rank, ranks=config.ranks, say=say
    )
    with (out / FILE).open("w", encoding="utf-8") as file:
        file.writelines(f"{one.model_dump_json()}\n" for one in judged)
    return Share.collect(out)


def judge(
    config: EvaluateConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: EncodedDataset,
    *,
    ranks: int,
    out: Path,
    runtime: Runtime,
) -> "list[Judged]":
    """Every held-out item, by place; a single rank works in this very process.

    Raises what a rank raised, or ChildFailed with its last lines where one died.
    """
    from gradelora.evaluate.judging import Judged

    folders = [out / ASIDE / f"rank-{rank}" for rank in range(ranks)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    threads = runtime.threads or max(1, (os.cpu_count() or 1) // ranks)
    each = runtime.model_copy(update={"threads": threads})

    def run(rank: int, how: Callable[..., Share]) -> None:
        share = ShareConfig(evaluate=config, rank=rank, ranks=ranks)
        how(judge_share, share, snapshot, adapter, data, out=folders[rank], runtime=each)

    if ranks == 1:
        run(0, child.here)
    else:
        together([functools.partial(run, rank, _aloud) for rank in range(ranks)])
    judged = []
    for folder in folders:
        with (folder / FILE).open(encoding="utf-8") as file:
            judged += [Judged.model_validate_json(line) for line in file]
        # The predictions say it all; the logs stay.
        (folder / FILE).unlink()
    return judged


def _aloud(*arguments: object, **named: object) -> Share:
    """child.call, whose lines go where this process's own go."""
    return child.call(*arguments, on_line=lambda line: print(line, flush=True), **named)  # type: ignore[arg-type]


def together(calls: list[Callable[[], None]]) -> None:
    """Calls that each wait for a child process, at once; the first that fails ends the children of all.

    Raises the first one's error.
    """
    failed: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    over = False
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not failed:
            time.sleep(0.1)
        over = not failed
    finally:
        # Again and again: a thread may have been about to start its child.
        while not over and any(thread.is_alive() for thread in threads):
            launch.end_all()
            time.sleep(0.1)
    if failed:
        raise failed[0]
