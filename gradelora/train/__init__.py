"""DeepSpeed LoRA training: the frozen base and graded answers in, an adapter out.

This module launches the ranks (gradelora.train.rank) and outlives them; it imports nothing
heavy.  A run cut off goes on from its newest sealed checkpoint.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from gradelora import launch
from gradelora.artifacts import ASIDE, Adapter, EncodedDataset, ModelSnapshot
from gradelora.child import Failure
from gradelora.config import Runtime, TrainConfig
from gradelora.errors import (
    BadConfig,
    BadData,
    BudgetReached,
    ChildFailed,
    MissingTool,
    NotEnoughGpus,
    NotEnoughMemory,
    RankLost,
    by_name,
)
from gradelora.hardware import gpu_bytes, missing_tools
from gradelora.nodes import Place
from gradelora.trackers import check_trackers
from gradelora.train import conversion
from gradelora.train.cancel import STOP, cancellable
from gradelora.train.job import FAILURE, RESULT, Job, Result
from gradelora.train.launching import command, environment
from gradelora.train.ledger import Ledger
from gradelora.train.memory import kernel_kills, was_killed
from gradelora.train.seals import FOLDER

VERSION = 2
RESUMES = True


def train(
    config: TrainConfig, snapshot: ModelSnapshot, data: EncodedDataset, *, out: Path, runtime: Runtime
) -> Adapter:
    """Train on the train split; validation loss is recorded where there is a validation split.

    Raises BadConfig, BadData, MissingTool or NotEnoughGpus before any work, RankLost where a process died,
    BudgetReached sealed where runtime.budget_hours or budget_cost ends, ChildFailed at the deadline, SystemExit at
    SIGTERM, and by its name whatever a rank raised.
    """
    place = Place.of(runtime)
    if place.rank:
        raise BadConfig(
            f"this machine is node {place.rank} of {place.nodes}: the flow runs on node 0; run `gradelora train` here"
        )
    aside = out / ASIDE
    (aside / RESULT).unlink(missing_ok=True)
    _run_ranks(config, snapshot, data, out, runtime, place, print)
    (aside / FAILURE).unlink(missing_ok=True)
    result = Result.model_validate_json((aside / RESULT).read_text())
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return Adapter.collect(out, repo_id=snapshot.repo_id, commit=snapshot.commit, **result.model_dump())


def join(
    config: TrainConfig,
    snapshot: ModelSnapshot,
    data: EncodedDataset,
    *,
    out: Path,
    runtime: Runtime,
    on_line: Callable[[str], None],
) -> None:
    """Train as another node than the first, in the folder `out` that node 0 fills; it alone makes the adapter.

    `on_line` gets what this node's ranks print.  Raises as `train` does.
    """
    _run_ranks(config, snapshot, data, out, runtime, Place.of(runtime), on_line)


def _run_ranks(
    config: TrainConfig,
    snapshot: ModelSnapshot,
    data: EncodedDataset,
    out: Path,
    runtime: Runtime,
    place: Place,
    on_line: Callable[[str], None],
) -> None:
    """Start this node's ranks and wait for them."""
    _check(config, data, place)
    check_trackers(runtime.report_to)
    aside = out / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out)
    spent_s = ledger.spent_s()
    if runtime.budget_s is not None and spent_s >= runtime.budget_s:
        raise BudgetReached(
            f"{spent_s / 3600:.4g} of {runtime.budget_s / 3600:.4g} hours are used up; {larger_budget(runtime)}"
        )
    job = Job(
        config=config,
        snapshot=snapshot.path.absolute(),
        repo_id=snapshot.repo_id,
        commit=snapshot.commit,
        data=data.model_copy(update={"path": data.path.absolute()}),
        out=out.absolute(),
        dataloader_workers=runtime.dataloader_workers,
        evaluate_rows=runtime.evaluate_rows,
        budget_s=runtime.budget_s,
        spent_s=spent_s,
        started=time.monotonic(),
        report_to=runtime.report_to,
        launcher_pid=os.getpid(),
        nodes=place.nodes,
        collective_timeout_s=runtime.collective_timeout_s,
        seal_every_s=60 * runtime.seal_minutes,
    )
    request = aside / f"job{_suffix(place)}.json"
    request.write_text(job.model_dump_json())
    env = environment(config, runtime, place)
    stop = aside / STOP
    if not place.rank:
        stop.unlink(missing_ok=True)
    with cancellable(stop), contextlib.nullcontext() if place.rank else ledger.running():
        if not place.rank:
            conversion.start(job, runtime.start_checkpoint, env)
        _launch(config, runtime, request, aside, place, env, on_line)


def _suffix(place: Place) -> str:
    """Files of another node than the first carry its rank: all nodes write into one folder."""
    return f".{place.rank}" if place.rank else ""


def larger_budget(runtime: Runtime) -> str:
    """How a training goes on that its budget has stopped."""
    names = [name for name in ("budget_hours", "budget_cost") if getattr(runtime, name) is not None]
    return f"raise runtime.{' or runtime.'.join(names)} and run again: it goes on from there to the same adapter"


def _check(config: TrainConfig, data: EncodedDataset, place: Place) -> None:
    if config.best != "last" and data.splits.validation == 0:
        raise BadConfig(
            f"train.best={config.best}, but {data.path} has no validation item; "
            "raise validation.split.validation_share, add data, or set train.best=last"
        )
    if data.splits.train == 0:
        raise BadData(f"{data.path}: no item is left to train on; lower the shares in validation.split or add data")
    if config.device == "cuda":
        gpus, asked = len(gpu_bytes()), place.local_processes(config)
        if gpus < asked:
            on_each = f", {asked} on each of {place.nodes} nodes" if place.nodes > 1 else ""
            raise NotEnoughGpus(
                f"train.processes={config.processes}{on_each}, but this machine has {gpus} CUDA GPUs; "
                "lower train.processes, or set train.device=cpu"
            )
    if config.parallel != "layers" and config.device == "cpu":
        missing = missing_tools()
        if missing:
            raise MissingTool(
                f"DeepSpeed compiles an operator for CPUs and needs {' and '.join(missing)}; "
                "install build-essential and ninja, or set train.parallel=layers with train.processes=1"
            )


def _launch(
    config: TrainConfig,
    runtime: Runtime,
    request: Path,
    aside: Path,
    place: Place,
    env: dict[str, str],
    on_line: Callable[[str], None],
) -> None:
    kills, earlier = kernel_kills(), _written(aside / FAILURE)
    try:
        launch.run(
            command(config, request, place, runtime.node_timeout_s),
            log=aside / f"ranks{_suffix(place)}.log",
            env=env,
            deadline_s=runtime.train_deadline_s,
            on_line=on_line,
        )
    except ChildFailed as error:
        # All nodes read the one file, so none removes it: an earlier attempt's is told by its time.
        if _written(aside / FAILURE) != earlier:
            failure = Failure.model_validate_json((aside / FAILURE).read_text())
            kind = by_name(failure.error)
            remedy = f"; {larger_budget(runtime)}" if kind is BudgetReached else ""
            raise kind(failure.message + remedy) from error
        if "passed its deadline" in str(error):
            raise
        if was_killed(str(error)) and kernel_kills() > kills:
            raise NotEnoughMemory(f"the kernel ended a training process, host memory had run out: {error}") from error
        raise RankLost(f"training process lost: {error}") from error


def _written(path: Path) -> int | None:
    """When the file was last written, in ns; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None
