"""Checkpoints are whole or not there."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from gradelora.errors import RankLost
from gradelora.train import parts, seals


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


def test_a_damaged_checkpoint_takes_no_whole_ones_place_among_those_kept(tmp_path: Path) -> None:
    whole, damaged = sealed(tmp_path, 10), sealed(tmp_path, 12)
    os.truncate(damaged / "rng_state_1.pth", 10)
    assert newest(tmp_path)[0] == whole
    last = sealed(tmp_path, 11)
    seals.prune(tmp_path, keep=1)
    assert newest(tmp_path)[0] == last
    assert not whole.exists()


def test_a_damaged_checkpoint_is_sealed_again_without_what_was_wrong_with_it(tmp_path: Path) -> None:
    damaged = sealed(tmp_path, 12)
    os.truncate(damaged / "rng_state_1.pth", 10)
    assert newest(tmp_path)[0] is None
    seals.seal(damaged, step=12, world_size=2, identity="run")
    assert newest(tmp_path) == (damaged, [])
    assert len(seals.read(damaged).files) == 3


# What the ranks of other nodes wrote.


def write_parts(folder: Path, rank: int) -> None:
    step = folder / "global_step6"
    step.mkdir(parents=True, exist_ok=True)
    (step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"o" * 300)
    (folder / f"rng_state_{rank}.pth").write_bytes(b"r" * 100)


def test_the_parts_of_a_rank_are_told_by_its_number(tmp_path: Path) -> None:
    for rank in (0, 1, 11):
        write_parts(tmp_path, rank)
    (tmp_path / "global_step6" / "mp_rank_00_model_states.pt").write_bytes(b"m")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert parts.written_by(tmp_path, 1) == {
        "global_step6/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": 300,
        "rng_state_1.pth": 100,
    }


def test_a_checkpoint_waits_for_a_part_that_another_nodes_rank_wrote_and_names_one_that_does_not_come(
    tmp_path: Path,
) -> None:
    """As over NFS: the file is there, then it is whole."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    write_parts(own, 0)
    write_parts(elsewhere, 1)
    told = parts.written_by(own, 0) | parts.written_by(elsewhere, 1)
    (own / "rng_state_1.pth").write_bytes(b"r" * 20)
    with pytest.raises(RankLost, match=r"bf16_zero_pp_rank_1_\S+: 0 of 300 bytes .* 1 more files"):
        parts.await_all(own, told, 0.2)
    late = threading.Timer(0.3, write_parts, (own, 1))
    late.start()
    parts.await_all(own, told, 10)
    late.join()
    seals.seal(own, step=6, world_size=2, identity="run", parts=told)
    assert set(told) <= {entry.name for entry in seals.read(own).files}
