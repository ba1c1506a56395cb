"""What training checks and starts; no rank runs here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import EncodedDataset, ModelSnapshot
from gradelora.child import Failure
from gradelora.config import Runtime, TrainConfig
from gradelora.errors import BadData, ChildFailed, NotEnoughGpus, RankLost
from gradelora.train import join, train
from gradelora.train.launching import command, environment
from gradelora.train.zero import deepspeed_json
from tests.tiny_data import save_encoded, snapshot_of
from tests.training import CONFIG, RUNTIME, changed


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> ModelSnapshot:
    """Nothing here opens the model."""
    return snapshot_of(tmp_path_factory.mktemp("model"))


def test_deepspeed_is_told_what_the_config_says() -> None:
    told = deepspeed_json(TrainConfig(), 10**9)
    assert told["train_batch_size"] == 2 * 4
    assert told["gradient_clipping"] == 1.0
    assert told["bf16"] == {"enabled": True}
    assert told["zero_optimization"]["stage"] == 2
    assert told["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert "optimizer" not in told
    assert deepspeed_json(TrainConfig(weights="bf16", parallel="zero3"), 10)["zero_optimization"]["stage"] == 3


def test_buckets_are_no_larger_than_all_gradients_together() -> None:
    assert deepspeed_json(TrainConfig(), 5_971_968)["zero_optimization"]["reduce_bucket_size"] == 5_971_968


def test_each_launcher_starts_the_same_program() -> None:
    request = Path("/r/job.json")
    lines = [command(c, request) for c in (CONFIG, changed(launcher="deepspeed"))]
    assert "torch.distributed.run" in lines[0]
    assert "deepspeed.launcher.runner" in lines[1]
    plain = command(changed(parallel="layers", processes=1), request)
    assert plain == [sys.executable, "-m", "gradelora.train.rank", "/r/job.json"]
    assert all(line[-2:] == ["gradelora.train.rank", "/r/job.json"] for line in [*lines, plain])


def test_threads_of_all_ranks_add_up_to_the_cores_and_ninja_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    env = environment(CONFIG, Runtime())
    assert env["OMP_NUM_THREADS"] == "4"
    assert shutil.which("ninja", path=env["PATH"])
    assert environment(CONFIG, Runtime(threads=3))["OMP_NUM_THREADS"] == "3"


def test_no_items_to_train_on_is_refused_before_anything_starts(snapshot: ModelSnapshot, tmp_path: Path) -> None:
    empty = save_encoded(tmp_path / "data", answers=0)
    with pytest.raises(BadData, match="no item"):
        train(CONFIG, snapshot, empty, out=tmp_path, runtime=RUNTIME)
    assert not (tmp_path / "aside").exists()


def test_more_processes_than_gpus_are_refused(
    snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradelora.train.gpu_bytes", lambda: [143 * 2**30])
    with pytest.raises(NotEnoughGpus, match="1 CUDA GPUs"):
        train(changed(device="cuda"), snapshot, data, out=tmp_path, runtime=RUNTIME)


def test_a_node_takes_no_earlier_attempts_failure_for_its_own(
    snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(threads=1, nodes=2, node_rank=1, rendezvous="127.0.0.1")
    failure = tmp_path / "aside" / "rank-failure.json"

    def attempt(*, fails: bool) -> None:
        def ranks(*_: Any, **__: Any) -> None:
            if fails:
                failure.write_text(Failure(error="BadData", message="an empty target").model_dump_json())
            raise ChildFailed("torchrun ended with exit code 1")

        monkeypatch.setattr("gradelora.train.launch.run", ranks)
        join(CONFIG, snapshot, data, out=tmp_path, runtime=runtime, on_line=print)

    with pytest.raises(BadData, match="an empty target"):
        attempt(fails=True)
    assert failure.exists(), "the other nodes may not have read it yet"
    with pytest.raises(RankLost):
        attempt(fails=False)
    with pytest.raises(BadData, match="an empty target"):
        attempt(fails=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_saving_and_evaluating_happen_on_small_data_too(steps: int) -> None:
    from gradelora.train.setup import interval

    assert 1 <= interval(0.25, steps) <= steps


def test_importing_the_stage_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "deepspeed", "datasets", "numpy")
    code = f"import sys, gradelora.train; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
