"""DeepSpeed LoRA training: the frozen base and graded answers in, an adapter out.

This module launches the ranks (gradelora.train.rank) and outlives them; it imports nothing
heavy.  A run cut off goes on from its newest sealed checkpoint.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gradelora import launch
from gradelora.artifacts import ASIDE, Adapter, EncodedDataset, ModelSnapshot
from gradelora.child import Failure
from gradelora.config import Runtime, TrainConfig
from gradelora.errors import BadData, ChildFailed, MissingTool, NotEnoughGpus, RankLost, by_name
from gradelora.hardware import gpu_bytes, missing_tools, tool_path
from gradelora.train.job import FAILURE, RESULT, Job, Result
from gradelora.train.seals import FOLDER

VERSION = 1
RESUMES = True

# DeepSpeed compiles one small operator, once a machine.
DEFAULT_EXTENSIONS = Path("~/.cache/gradelora/torch_extensions")


def train(
    config: TrainConfig, snapshot: ModelSnapshot, data: EncodedDataset, *, out: Path, runtime: Runtime
) -> Adapter:
    """Train on the train split; validation loss is recorded where there is a validation split.

    Raises BadData, MissingTool or NotEnoughGpus before any work, RankLost where a process died,
    ChildFailed at the deadline, and by its name whatever a rank raised.
    """
    _check(config, data)
    aside = out / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    for stale in (aside / RESULT, aside / FAILURE):
        stale.unlink(missing_ok=True)
    job = Job(
        config=config,
        snapshot=snapshot.path.absolute(),
        repo_id=snapshot.repo_id,
        commit=snapshot.commit,
        data=data.path.absolute(),
        data_digest=data.digest,
        pad_token_id=data.pad_token_id,
        out=out.absolute(),
        dataloader_workers=runtime.dataloader_workers,
        launcher_pid=os.getpid(),
    )
    request = aside / "job.json"
    request.write_text(job.model_dump_json())
    with _cancellable():
        _launch(config, runtime, request, aside)
    result = Result.model_validate_json((aside / RESULT).read_text())
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return Adapter.collect(out, repo_id=snapshot.repo_id, commit=snapshot.commit, **result.model_dump())


def _check(config: TrainConfig, data: EncodedDataset) -> None:
    if data.splits.train == 0:
        raise BadData(f"{data.path}: no item is left to train on; lower the shares in validation.split or add data")
    if config.device == "cuda":
        gpus = len(gpu_bytes())
        if gpus < config.processes:
            raise NotEnoughGpus(
                f"train.processes={config.processes}, but this machine has {gpus} CUDA GPUs; "
                "lower train.processes, or set train.device=cpu"
            )
    if config.parallel != "layers" and config.device == "cpu":
        missing = missing_tools()
        if missing:
            raise MissingTool(
                f"DeepSpeed compiles an operator for CPUs and needs {' and '.join(missing)}; "
                "install build-essential and ninja, or set train.parallel=layers with train.processes=1"
            )


def command(config: TrainConfig, request: Path) -> list[str]:
    """How the ranks are started: torchrun, the deepspeed launcher, or one plain process."""
    program = ["-m", "gradelora.train.rank", str(request)]
    if config.parallel == "layers":
        return launch.python(*program)
    if config.launcher == "deepspeed":
        count = ["--num_gpus" if config.device == "cuda" else "--num_accelerators", str(config.processes)]
        return launch.python("-m", "deepspeed.launcher.runner", *count, "--module", *program[1:])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(config.processes)]
    return launch.python(*torchrun, *program)


def environment(config: TrainConfig, runtime: Runtime) -> dict[str, str]:
    """The ranks' environment: threads that add up to the cores, a fixed place for compiled operators."""
    threads = runtime.threads or max(1, (os.cpu_count() or 1) // config.processes)
    env = {
        **os.environ,
        **environment_of_tools(),
        "OMP_NUM_THREADS": str(threads),
        # Nothing here may reach for the Hub: all files are in the snapshot.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if config.device == "cuda":
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    else:
        # Also where there are GPUs: DeepSpeed would take them.
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return env


def environment_of_tools() -> dict[str, str]:
    """Where compilers are found and where compiled operators are kept."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR", str(DEFAULT_EXTENSIONS.expanduser()))
    return {"PATH": tool_path(), "TORCH_EXTENSIONS_DIR": folder}


def _launch(config: TrainConfig, runtime: Runtime, request: Path, aside: Path) -> None:
    try:
        launch.run(
            command(config, request),
            log=aside / "ranks.log",
            env=environment(config, runtime),
            deadline_s=runtime.train_deadline_s,
            on_line=print,
        )
    except ChildFailed as error:
        if (aside / FAILURE).exists():
            failure = Failure.model_validate_json((aside / FAILURE).read_text())
            raise by_name(failure.error)(failure.message) from error
        if "passed its deadline" in str(error):
            raise
        raise RankLost(f"training process lost: {error}") from error


@contextmanager
def _cancellable() -> Iterator[None]:
    """SIGTERM becomes an exception, so that the launcher can end the ranks before this process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
