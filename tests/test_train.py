"""Training end to end: real ranks, real kills, and checkpoints that are whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import LoraSettings, Runtime, TrainConfig
from gradelora.errors import BadData, GradeloraError, NotEnoughGpus, RankLost, UnsupportedModel
from gradelora.train import command, environment, seals, train
from gradelora.train.job import Job
from gradelora.train.zero import deepspeed_json
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss, save_llama

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


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> ModelSnapshot:
    return snapshot_of(save_gpt_oss(tmp_path_factory.mktemp("gpt-oss")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    return save_encoded(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return train(CONFIG, snapshot, data, out=tmp_path_factory.mktemp("undisturbed"), runtime=RUNTIME)


def changed(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | values)


def history(adapter: Adapter) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((adapter.path / "history.json").read_text())
    return found


def progress(out: Path) -> list[dict[str, float]]:
    path = out / "aside" / "progress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranks_of(out: Path) -> list[int]:
    """Pids of all living processes that carry this run's job file in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(out / "aside" / "job.json") in line and "torch.distributed.run" not in line:
            found.append(int(folder.name))
    return sorted(found)


def when(condition: Callable[[], bool], act: Callable[[], None], timeout_s: float = 120) -> threading.Thread:
    """Do `act` in a thread as soon as `condition` holds."""

    def watch() -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and not condition():
        time.sleep(0.05)
    return condition()


# --- Checkpoints ---


def sealed(root: Path, step: int, world_size: int = 2, identity: str = "run") -> Path:
    folder = seals.folder_of(root, step)
    (folder / f"global_step{step}").mkdir(parents=True)
    for name in ("trainer_state.json", f"global_step{step}/optimizer.pt", "rng_state_1.pth"):
        (folder / name).write_bytes(name.encode() * 100)
    seals.seal(folder, step=step, world_size=world_size, identity=identity)
    return folder


def newest(root: Path) -> tuple[Path | None, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = seals.newest(root, world_size=2, identity="run")
    return found, [str(w.message) for w in caught]


def test_the_newest_sealed_checkpoint_is_chosen_by_its_number(tmp_path: Path) -> None:
    sealed(tmp_path, 9)
    last = sealed(tmp_path, 10)
    assert newest(tmp_path) == (last, [])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
        (lambda f: (f / "rng_state_1.pth").unlink(), "rng_state_1.pth"),
        (lambda f: os.truncate(f / "global_step6" / "optimizer.pt", 50), "optimizer.pt"),
        (lambda f: (f / "trainer_state.json").write_bytes(b"x" * 1800), "trainer_state.json"),
    ],
    ids=["half-written", "manifest cut off", "file missing", "file truncated", "bytes changed"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_names_the_file(
    tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    before, last = sealed(tmp_path, 3), sealed(tmp_path, 6)
    damage(last)
    found, said = newest(tmp_path)
    assert found == before
    assert len(said) == 1
    assert named in said[0]
    assert "step-6" in said[0]


def test_a_checkpoint_of_another_run_or_of_another_number_of_processes_is_not_resumed_from(tmp_path: Path) -> None:
    sealed(tmp_path / "a", 3, world_size=1)
    sealed(tmp_path / "b", 3, identity="other")
    assert newest(tmp_path / "a")[0] is None
    assert newest(tmp_path / "b")[0] is None


def test_older_checkpoints_go_only_when_newer_ones_are_sealed(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        sealed(tmp_path, step)
    (seals.folder_of(tmp_path, 12)).mkdir()
    seals.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-12", "step-6", "step-9"]


# --- What is launched ---


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
    monkeypatch.setattr("gradelora.train._gpus", lambda: 1)
    with pytest.raises(NotEnoughGpus, match="1 CUDA GPUs"):
        train(changed(device="cuda"), snapshot, data, out=tmp_path, runtime=RUNTIME)


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"micro_batch_rows": 4}, "train.micro_batch_rows=2 and train.accumulation=4"),
        ({}, "train.gradient_checkpointing=true"),
        ({"gradient_checkpointing": True}, "train.answers_per_row=2"),
        ({"gradient_checkpointing": True, "answers_per_row": 1}, "train.expert_chunk"),
        ({"gradient_checkpointing": True, "answers_per_row": 1, "weights": "bf16"}, "encode.max_length"),
    ],
)
def test_advice_when_memory_runs_out_names_the_next_setting(values: dict[str, Any], advice: str) -> None:
    from gradelora.train.rank import memory_advice

    job = Job(
        config=changed(**values),
        snapshot=Path("s"),
        repo_id="a/b",
        commit="c",
        data=Path("d"),
        data_digest="e",
        pad_token_id=0,
        out=Path("o"),
        dataloader_workers=0,
        launcher_pid=1,
    )
    assert advice in memory_advice(job)


def test_importing_the_stage_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "deepspeed", "datasets", "numpy")
    code = f"import sys, gradelora.train; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- Real runs ---


@pytest.mark.slow
def test_two_ranks_learn_and_leave_the_adapter_alone(undisturbed: Adapter) -> None:
    entries = history(undisturbed)
    assert [e["step"] for e in entries] == list(range(1, STEPS + 1))
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert [e["step"] for e in entries if "validation_loss" in e] == [3, 6, 9, 12]
    names = {f.name for f in undisturbed.files if not f.name.startswith("aside/")}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "history.json"}
    config = json.loads((undisturbed.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/gpt-oss"
    assert config["revision"] == "0" * 40
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert undisturbed.steps == STEPS
    assert undisturbed.trainable_parameters == 7168
    lines = progress(undisturbed.path)
    assert {"loss", "learning_rate", "tokens_per_s", "peak_memory_bytes"} <= set(lines[0])


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    assert train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME).digest == undisturbed.digest


@pytest.mark.slow
def test_packed_and_bf16_weights_train_the_same_adapter_on_two_ranks(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    other = train(changed(weights="bf16"), snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert history(other) == history(undisturbed)
    assert other.digest == undisturbed.digest


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "launcher", "everything"])
def test_a_run_that_was_killed_goes_on_to_the_same_adapter(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, victim: str
) -> None:
    def reached() -> bool:
        return any(line["step"] >= 8 for line in progress(tmp_path))

    if victim == "everything":
        code = (
            "import sys; from pathlib import Path; from tests.test_train import *; "
            "from gradelora.artifacts import *; train(CONFIG, ModelSnapshot.model_validate_json(sys.argv[1]), "
            "EncodedDataset.model_validate_json(sys.argv[2]), out=Path(sys.argv[3]), runtime=RUNTIME)"
        )
        arguments = [snapshot.model_dump_json(), data.model_dump_json(), str(tmp_path)]
        stage = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
        assert wait_for(reached, 120)
        stage.kill()
        stage.wait()
        assert wait_for(lambda: not ranks_of(tmp_path)), "ranks outlived the process that started them"
    else:

        def kill() -> None:
            rank = ranks_of(tmp_path)[-1]
            parent = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(rank if victim == "rank" else parent, signal.SIGKILL)

        killer = when(reached, kill)
        with pytest.raises(RankLost):
            train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME)
        killer.join()
        assert wait_for(lambda: not ranks_of(tmp_path))
    before = [line["step"] for line in progress(tmp_path)]
    resumed = train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert resumed.digest == undisturbed.digest
    again = [line["step"] for line in progress(tmp_path)][len(before) :]
    assert 6 < again[0] <= before[-1] + 1


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_still_leads_to_the_same_adapter(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, capfd: Any
) -> None:
    killer = when(
        lambda: any(line["step"] >= 7 for line in progress(tmp_path)),
        lambda: os.kill(ranks_of(tmp_path)[0], signal.SIGKILL),
    )
    with pytest.raises(RankLost):
        train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME)
    killer.join()
    newest_folder = max((tmp_path / "checkpoints").glob("step-*/manifest.json"), key=lambda p: p.stat().st_mtime).parent
    os.truncate(newest_folder / "rng_state_1.pth", 100)
    resumed = train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert resumed.digest == undisturbed.digest
    said = (tmp_path / "aside" / "ranks.log").read_text()
    assert f"{newest_folder.name}/rng_state_1.pth" in said
    assert "resuming from step-" in said
    capfd.readouterr()


@pytest.mark.slow
def test_sigterm_to_the_stage_leaves_no_process(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path) -> None:
    reached = when(
        lambda: any(line["step"] >= 4 for line in progress(tmp_path)),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(SystemExit):
        train(CONFIG, snapshot, data, out=tmp_path, runtime=RUNTIME)
    reached.join()
    assert wait_for(lambda: not ranks_of(tmp_path), 5)
    assert seals.newest(tmp_path / "checkpoints", world_size=2, identity=identity_of(tmp_path)) is not None


def identity_of(out: Path) -> str:
    return Job.model_validate_json((out / "aside" / "job.json").read_text()).identity


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"parallel": "zero3", "weights": "bf16"},
        {"parallel": "zero3", "weights": "bf16", "precision": "bf16"},
        {"precision": "bf16"},
        {"parallel": "layers", "processes": 1, "accumulation": 4},
        {"gradient_checkpointing": True, "expert_chunk": 2, "launcher": "deepspeed"},
        {"sharing": "off", "answers_per_row": 1, "micro_batch_rows": 4, "epochs": 6, "max_steps": 12},
    ],
    ids=["zero3", "zero3-bf16", "zero2-bf16", "layers", "checkpointing-deepspeed", "separate"],
)
def test_every_mode_learns_the_same(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, values: dict[str, Any]
) -> None:
    adapter = train(changed(**values), snapshot, data, out=tmp_path, runtime=RUNTIME)
    entries, wanted = history(adapter), history(undisturbed)
    assert adapter.steps == STEPS
    assert adapter.total_parameters == undisturbed.total_parameters
    if "sharing" not in values:
        # The same rows in the same steps: only dropout and rounding differ.
        assert entries[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=0.01)
    assert entries[-1]["loss"] < 0.8 * entries[0]["loss"]


@pytest.mark.slow
def test_loss_and_gradient_do_not_depend_on_how_rows_are_spread(
    snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    """Rows of unequal size over ranks and micro-steps: the mean is over the tokens of the whole step."""
    still = {"lora": {"dropout": 0.0}, "answers_per_row": 6, "max_steps": 2}
    spread = train(changed(**still), snapshot, data, out=tmp_path / "two", runtime=RUNTIME)
    whole = train(
        changed(**still, processes=1, accumulation=1, micro_batch_rows=4),
        snapshot,
        data,
        out=tmp_path / "one",
        runtime=RUNTIME,
    )
    for one, other in zip(history(spread), history(whole), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one.get("validation_loss") == pytest.approx(other.get("validation_loss"), rel=1e-4)


@pytest.mark.slow
def test_an_error_of_a_rank_keeps_its_name(data: EncodedDataset, tmp_path: Path) -> None:
    dense = snapshot_of(save_llama(tmp_path / "llama"))
    with pytest.raises(UnsupportedModel, match="weights=bf16") as caught:
        train(CONFIG, dense, data, out=tmp_path / "out", runtime=RUNTIME)
    assert isinstance(caught.value, GradeloraError)
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_a_dense_model_trains_on_two_ranks(data: EncodedDataset, tmp_path: Path) -> None:
    dense = snapshot_of(save_llama(tmp_path / "llama"))
    entries = history(train(changed(weights="bf16"), dense, data, out=tmp_path / "out", runtime=RUNTIME))
    assert entries[-1]["loss"] < 0.9 * entries[0]["loss"]
