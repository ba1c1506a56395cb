"""Training end to end: real ranks, real kills, and checkpoints that are whole or not there."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import Runtime
from gradelora.errors import BudgetReached, GradeloraError, RankLost, UnsupportedModel
from gradelora.train import VERSION, seals, train
from gradelora.train.budget import PACE, Pace
from gradelora.train.job import Job
from gradelora.train.ledger import Ledger
from tests.killing import VICTIMS, faults, kill_chains
from tests.tiny_data import snapshot_of
from tests.tiny_models import save_llama
from tests.training import (
    CONFIG,
    RUNTIME,
    STEPS,
    changed,
    curves,
    history,
    progress,
    ranks_of,
    wait_for,
    when,
)

pytestmark = pytest.mark.slow


# What cannot change a result: here it does not.
REPORTING = Runtime(threads=1, report_to=("tensorboard",), budget_hours=1000, evaluate_rows=1, seal_minutes=1e-6)


@pytest.fixture(scope="module")
def undisturbed(snapshot: ModelSnapshot, data: EncodedDataset, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return train(CONFIG, snapshot, data, out=tmp_path_factory.mktemp("undisturbed"), runtime=RUNTIME)


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


# The losses of CONFIG by train's VERSION.  No digest: its last bits follow the CPU's vector instructions.
GOLDEN = {2: (6.7242, 6.3298, 6.2125, 5.5031, 5.6572, 5.3742, 4.6616, 3.8979, 4.9643, 4.1532, 3.6672, 3.9085)}


def test_what_training_computes_is_held_to_its_version(undisturbed: Adapter) -> None:
    """Another order of rows, another dropout, another normalisation: all need a new VERSION."""
    assert [e["loss"] for e in history(undisturbed)] == pytest.approx(GOLDEN[VERSION], rel=1e-3)


def test_the_same_run_gives_the_same_bytes_and_leaves_nothing_in_the_temporary_folder(
    undisturbed: Adapter,
    snapshot: ModelSnapshot,
    data: EncodedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    out.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert train(CONFIG, snapshot, data, out=out, runtime=REPORTING).digest == undisturbed.digest
    assert [step for step, _ in curves(out)["validation_loss"]] == [3, 6, 9, 12]
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_s", "peak_memory_bytes"} < set(curves(out))
    assert not list(temporary.iterdir())


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_adapter(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    """`python -m bench.kill_training --moments 20` does more of it."""
    (chain,) = kill_chains(snapshot, data, tmp_path, configs=(CONFIG,), moments=4, a_chain=4, seed=1)
    assert {moment.victim for moment in chain.moments} == set(VICTIMS)
    assert set(faults(chain.moments)) <= {"no kill left a checkpoint half written"}
    assert chain.adapter.digest == undisturbed.digest


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


def test_a_run_cut_off_after_its_last_step_trains_nothing_again(
    snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gradelora.train.shutil.rmtree", lambda *_, **__: None)
        train(changed(max_steps=3), snapshot, data, out=tmp_path, runtime=RUNTIME)
    results = [tmp_path / "adapter_model.safetensors", tmp_path / "history.json"]
    first = [path.read_bytes() for path in results]
    for path in results:
        path.unlink()
    lines = len(progress(tmp_path))
    train(changed(max_steps=3), snapshot, data, out=tmp_path, runtime=RUNTIME)
    assert [path.read_bytes() for path in results] == first
    assert len(progress(tmp_path)) == lines
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_its_budget_stops_is_sealed_there_and_goes_on_to_the_same_adapter(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    (tmp_path / "aside").mkdir()
    # An evaluation takes an hour: step 3, the first that evaluates, does not fit into half of one.
    (tmp_path / "aside" / PACE).write_text(Pace(evaluation=3600).model_dump_json())
    short, long = (Runtime(threads=1, budget_hours=hours) for hours in (0.5, 100))
    with pytest.raises(BudgetReached, match=r"step 2 of 12 is sealed.*raise runtime.budget_hours"):
        train(CONFIG, snapshot, data, out=tmp_path, runtime=short)
    assert seals.newest(tmp_path / "checkpoints", world_size=2, identity=identity_of(tmp_path)) is not None
    before = len(progress(tmp_path))
    assert train(CONFIG, snapshot, data, out=tmp_path, runtime=long).digest == undisturbed.digest
    assert progress(tmp_path)[before]["step"] == 3
    assert len(list(Ledger(tmp_path).folder.glob("*.json"))) == 2


def test_sigterm_before_the_first_checkpoint_is_due_leaves_no_process_and_a_sealed_one_to_go_on_from(
    undisturbed: Adapter, snapshot: ModelSnapshot, data: EncodedDataset, tmp_path: Path
) -> None:
    at_the_end = changed(save_every=1.0)
    reached = when(lambda: bool(progress(tmp_path)), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        train(at_the_end, snapshot, data, out=tmp_path, runtime=RUNTIME)
    reached.join()
    assert left.value.code == 128 + signal.SIGTERM
    assert wait_for(lambda: not ranks_of(tmp_path), 5)
    sealed = seals.newest(tmp_path / "checkpoints", world_size=2, identity=identity_of(tmp_path))
    assert sealed is not None
    before = len(progress(tmp_path))
    assert train(at_the_end, snapshot, data, out=tmp_path, runtime=RUNTIME).digest == undisturbed.digest
    assert sealed.name == f"step-{progress(tmp_path)[before]['step'] - 1}"


def identity_of(out: Path) -> str:
    return Job.model_validate_json((out / "aside" / "job.json").read_text()).identity


def test_an_error_of_a_rank_keeps_its_name(data: EncodedDataset, tmp_path: Path) -> None:
    dense = snapshot_of(save_llama(tmp_path / "llama"))
    with pytest.raises(UnsupportedModel, match="weights=bf16") as caught:
        train(CONFIG, dense, data, out=tmp_path / "out", runtime=RUNTIME)
    assert isinstance(caught.value, GradeloraError)
    assert caught.value.exit_code == 2
