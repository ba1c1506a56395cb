"""`make demo` as a user runs it: a fresh copy of the project, the whole training, then once more."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, STAGES

pytestmark = pytest.mark.slow
HEAVY = {"torch", "great_expectations", "transformers", "peft", "deepspeed", "datasets"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, repositories: Path) -> Path:
    """What a clone holds, with the tiny checkpoint that the tests have built already."""
    copy = tmp_path_factory.mktemp("clone")
    for name in ("gradelora", "flows", "tasks", "deployments", "data"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(repositories, copy / ".demo" / "repositories")
    return copy


def demo(project: Path, **env: str) -> dict[str, Any]:
    """The outcome that the demo prints with --json."""
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    done = subprocess.run(
        [sys.executable, "-m", "gradelora.sandbox.demo", "--json"],
        cwd=project,
        env={**os.environ, "TORCH_EXTENSIONS_DIR": extensions, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.fixture(scope="module")
def first(project: Path) -> dict[str, Any]:
    return demo(project)


def test_the_demo_runs_every_stage_and_really_learns(first: dict[str, Any]) -> None:
    assert {row["stage"] for row in first["stages"] if not row["cached"]} == {*STAGES, "merge"}
    evaluation = first["evaluation"]
    assert evaluation["split"] == "unseen_answers"
    assert evaluation["items"] > 100
    assert evaluation["qwk_gain"]["low"] > 0
    assert evaluation["adapter_qwk"]["low"] > evaluation["base_qwk"]["high"]
    assert first["verdict"]["promoted"]


def test_transformers_alone_scores_the_merged_demo_as_base_and_adapter_did(
    project: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    (encoded,) = (project / ".demo" / "store" / "encode").glob("[0-9a-f]*")
    split, merged = first["evaluation"]["split"], project / first["merged"]
    command = [sys.executable, str(ROOT / "tests" / "scored_alone.py"), str(merged), str(encoded), split]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["missing"], said["unexpected"]) == ([], [])
    predictions = project / first["evaluation"]["path"] / "predictions.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    alone, differences, effects = said["log_probabilities"], [], []
    assert {row["item_id"] for row in rows} == set(alone)
    for row in rows:
        logs, merged_logs = row["adapter_log_probabilities"], alone[row["item_id"]]
        best = logs.index(max(logs))
        # What changed the decision is no more than rounding moves.
        assert max(merged_logs) - merged_logs[best] < 0.05, row["item_id"]
        differences += [abs(a - b) for a, b in zip(logs, merged_logs, strict=True)]
        effects += [abs(a - b) for a, b in zip(logs, row["base_log_probabilities"], strict=True)]
    assert sum(effects) / len(effects) > 1
    assert sum(differences) < 0.02 * sum(effects)


def test_the_second_demo_is_cached_whole_and_no_process_of_it_imports_anything_heavy(
    project: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    """Every Python process writes what it imported when it ends."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib, sys\n"
        f"note = pathlib.Path({str(tmp_path)!r}) / f'{{os.getpid()}}.modules'\n"
        "atexit.register(lambda: note.write_text('\\n'.join(sys.modules)))\n"
    )
    again = demo(project, PYTHONPATH=str(tmp_path))
    assert all(row["cached"] for row in again["stages"])
    assert again["evaluation"] == first["evaluation"]
    imported = [path.read_text().split() for path in tmp_path.glob("*.modules")]
    assert len(imported) >= 3, "the demo, the flow and the builder are processes of their own"
    assert any("prefect" in modules for modules in imported)
    assert not HEAVY & {name for modules in imported for name in modules}
