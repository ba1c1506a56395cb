"""Memory that runs out during training ends with what to change, computed from the plan."""

import os
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import DataFiles, EncodedDataset
from gradelora.config import RunConfig
from gradelora.config_file import load_config
from gradelora.errors import ChildFailed, NotEnoughMemory, RankLost
from gradelora.hardware import preset
from gradelora.preflight import make_plan
from gradelora.relief import with_relief
from gradelora.train import train
from gradelora.train.memory import kernel_kills, out_of_memory, was_killed
from tests.described import gpt_oss
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import CONFIG, RUNTIME


def run_with(*changes: str) -> RunConfig:
    return load_config(Path("deployments/h200.yaml"), ["store.root=/s", "runtime.hub_cache=/h", *changes])


def advice(*changes: str) -> str:
    run = run_with(*changes)
    plan = make_plan(run, gpt_oss(), DataFiles(path=Path(), files=()), Path("/h"), preset("2xh200"))
    return str(with_relief(NotEnoughMemory("training ran out of memory: CUDA out of memory"), run, plan))


def test_advice_names_settings_that_need_less_in_the_tutorials_order() -> None:
    said = advice("train.micro_batch_rows=2", "train.accumulation=2")
    smaller = said.index("--set train.micro_batch_rows=1 --set train.accumulation=4`")
    assert "training ran out of memory" in said[:smaller]
    assert smaller < said.index("--set train.gradient_checkpointing=true`")
    assert said.endswith("if none is enough, lower encode.max_length=512")
    assert "--set train.gradient_checkpointing=true`" in advice()


def test_advice_never_names_a_way_that_needs_as_much() -> None:
    said = advice("train.gradient_checkpointing=true", "train.expert_chunk=16", "train.answers_per_row=1")
    assert "train.weights=bf16" not in said
    assert "encode.max_length" in said


def test_torch_tells_that_memory_ran_out_on_the_host_too() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_a_sigkill_is_recognised_in_what_a_launcher_says() -> None:
    assert was_killed("python was killed by SIGKILL; log: ranks.log")
    assert was_killed("  exitcode  : -9 (pid: 17)\n  traceback : Signal 9 (SIGKILL) received by PID 17")
    assert not was_killed("  exitcode  : 1 (pid: 17)")
    assert kernel_kills() >= 0


@pytest.mark.parametrize(("kernel", "kind"), [(1, NotEnoughMemory), (0, RankLost)])
def test_a_process_that_the_kernel_ended_for_memory_is_not_one_that_somebody_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: int, kind: type[Exception]
) -> None:
    data: EncodedDataset = save_encoded(tmp_path / "data", questions=1, answers=2)
    counts = iter((5, 5 + kernel))

    def killed(*_: Any, **__: Any) -> None:
        raise ChildFailed(f"python was killed by SIGKILL by {os.getpid()}")

    monkeypatch.setattr("gradelora.train.kernel_kills", lambda: next(counts))
    monkeypatch.setattr("gradelora.train.launch.run", killed)
    with pytest.raises(kind):
        train(CONFIG, snapshot_of(tmp_path / "model"), data, out=tmp_path / "out", runtime=RUNTIME)
