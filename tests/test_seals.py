"""Checkpoints are whole or not there."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from gradelora.train import seals


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
