"""Run one stage in a process of its own: `python -m gradelora.child REQUEST.json`.

Heavy libraries are imported only there, cancelling kills it, and its memory is its own.
An error of ours keeps its name on the way back.
"""

import importlib
import inspect
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from gradelora import launch
from gradelora.artifacts import ASIDE, Artifact, Frozen
from gradelora.config import Runtime
from gradelora.errors import ChildFailed, GradeloraError, by_name

A = TypeVar("A", bound=Artifact)
USAGE = "usage.json"


class Request(Frozen):
    """One call of a stage: `arguments` are its config and inputs as JSON, in order."""

    stage: str
    arguments: tuple[str, ...]
    runtime: Runtime
    out: Path


class Usage(Frozen):
    """What one call cost: wall seconds, peak bytes of its largest process, and those it held on a GPU."""

    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0


class Failure(Frozen):
    """An error that crosses the process border."""

    error: str
    message: str


def call(
    stage: Callable[..., A],
    config: Frozen,
    *inputs: Artifact,
    out: Path,
    runtime: Runtime,
    on_line: Callable[[str], None] = lambda line: None,
) -> A:
    """`stage(config, *inputs, out=out, runtime=runtime)` in a child process.

    Raises what the stage raised, or ChildFailed where the child died.
    """
    aside = out / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    request, answer = aside / "request.json", aside / "answer.json"
    answer.unlink(missing_ok=True)
    name = f"{stage.__module__}:{stage.__name__}"
    arguments = tuple(a.model_dump_json() for a in (config, *inputs))
    request.write_text(Request(stage=name, arguments=arguments, runtime=runtime, out=out).model_dump_json())
    # OMP: two processes of two threads each on two cores run many times slower than one.
    env = {**os.environ, "OMP_NUM_THREADS": str(runtime.threads or os.cpu_count() or 1)}
    try:
        launch.run(
            launch.python("-m", "gradelora.child", str(request)), log=aside / "log.txt", env=env, on_line=on_line
        )
    except ChildFailed as error:
        if not answer.exists():
            raise
        failure = Failure.model_validate_json(answer.read_text())
        raise by_name(failure.error)(failure.message) from error
    artifact_type: type[A] = get_type_hints(stage)["return"]
    result = artifact_type.model_validate_json(answer.read_text())
    request.unlink()
    answer.unlink()
    return result


def here(stage: Callable[..., A], config: Frozen, *inputs: Artifact, out: Path, runtime: Runtime) -> A:
    """The same call in this process."""
    return stage(config, *inputs, out=out, runtime=runtime)


def main(path: Path) -> int:
    """Do what the request at `path` says; the answer lies beside it."""
    # An exception, so that the stage's own children are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    request = Request.model_validate_json(path.read_text())
    module, _, function = request.stage.partition(":")
    stage = getattr(importlib.import_module(module), function)
    answer = path.with_name("answer.json")
    started = time.monotonic()
    try:
        result: Artifact = stage(*_parsed(stage, request.arguments), out=request.out, runtime=request.runtime)
    except GradeloraError as error:
        traceback.print_exc()
        write_whole(answer, Failure(error=type(error).__name__, message=str(error)).model_dump_json())
        return error.exit_code
    # What a stage's own children held on their GPUs they have written down; the kernel tells of memory alone.
    inner = [Usage.model_validate_json(p.read_text()).peak_gpu_bytes for p in path.parent.glob(f"*/{ASIDE}/{USAGE}")]
    usage = Usage(
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_gpu_bytes=max(peak_gpu_bytes(), *inner, 0),
    )
    write_whole(path.with_name(USAGE), usage.model_dump_json())
    write_whole(answer, result.model_dump_json())
    return 0


def peak_rss_bytes() -> int:
    """Largest resident set so far of this process or of one of its ended children."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peak_gpu_bytes() -> int:
    """Most bytes that this process ever held on one GPU; 0 where it used none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))


def _parsed(stage: Callable[..., Any], arguments: tuple[str, ...]) -> list[Frozen]:
    """Each argument by the annotation of its parameter."""
    hints = get_type_hints(stage)
    names = list(inspect.signature(stage).parameters)
    return [hints[name].model_validate(json.loads(text)) for name, text in zip(names, arguments, strict=False)]


def write_whole(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
