"""The whole flow on a real Prefect server: what runs again, and what does not."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from gradelora.artifacts import Adapter, EvalReport
from gradelora.champion import promote
from gradelora.receipt import read_receipt, restored
from gradelora.report.compared import Comparison
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub
from tests.conftest import STAGES, Bench, sentence

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Bench:
    """A bench on which everything has run once."""
    assert bench.states() == dict.fromkeys(STAGES, "run")
    return bench


def test_a_second_run_is_cached_whole(trained: Bench) -> None:
    assert trained.states() == dict.fromkeys(STAGES, "cached")


def test_every_plan_is_kept_and_held_against_what_happened(trained: Bench) -> None:
    """In the store, beside the page, and in the UI."""
    trained.states()
    store = trained.folder / "store"
    first, *_, last = sorted(store.glob("reports/*/compared.json"))
    ran, cached = (Comparison.model_validate_json(path.read_text()) for path in (first, last))
    assert len(list(store.glob("plans/*.json"))) == len(list(store.glob("reports/*/plan.json")))
    assert not ran.surprises
    assert not cached.surprises
    assert not any(each.cached for each in ran.figures)
    assert all(each.cached for each in cached.figures)
    figures = {(each.stage, each.figure): each for each in ran.figures}
    known = {(each.stage, each.figure): each for each in cached.figures}
    for stage in ("train", "evaluate"):
        # Nothing was encoded yet when the first plan was made; the second knew every length.
        bound, exact = (each[stage, "the largest process"] for each in (figures, known))
        assert bound.bound
        assert bound.held, bound
        assert abs(exact.error or 1) < 0.2, exact
    assert known["train", "tokens"].error == 0
    assert abs(figures["train", "adapter"].error or 1) < 0.02
    assert figures["train", "steps"].error == 0
    built = {each.stage: each.built_s for each in cached.figures if each.kind == "time"}
    assert built["train"] == pytest.approx(figures["train", "seconds"].measured, rel=0.2)
    latest = httpx.post(f"{trained.server.url}/artifacts/latest/filter", json={}, timeout=30).json()
    found = {artifact["key"]: artifact["data"] for artifact in latest}
    assert {"demo-plan", "demo-compared"} <= set(found)
    # Units, as a reader wants them: the UI shows a number with all its digits.
    for row in (*json.loads(found["demo-compared"]), *json.loads(found["demo-stages"])):
        assert not any(isinstance(value, float) for value in row.values()), row
    assert any(row["planned"].endswith(" MB") for row in json.loads(found["demo-compared"]))


def test_touching_a_data_file_runs_nothing(trained: Bench) -> None:
    for path in (trained.folder / "data").glob("*.json"):
        os.utime(path, ns=(1, 1))
    assert set(trained.states().values()) == {"cached"}


def test_a_worker_count_runs_nothing(trained: Bench) -> None:
    changes = ["runtime.encode_workers=2", "runtime.evaluate_rows=2", "runtime.train_deadline_s=5000"]
    assert set(trained.states(*changes).values()) == {"cached"}


@pytest.mark.parametrize("stage", ["validate", "encode", "train", "evaluate"])
@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_a_lost_artifact_runs_that_stage_alone(trained: Bench, stage: str, harm: str) -> None:
    """The artifact that comes back is the same, so what follows stays cached."""
    (sealed,) = [p for p in (trained.folder / "store" / stage).iterdir() if not p.name.startswith(".")]
    largest = max(
        (p for p in sealed.rglob("*") if p.is_file() and "aside" not in p.parts), key=lambda p: p.stat().st_size
    )
    if harm == "deleted":
        largest.unlink()
    else:
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    assert trained.states() == {**dict.fromkeys(STAGES, "cached"), stage: "run"}


def test_a_damaged_blob_in_the_cache_runs_fetch_alone(trained: Bench) -> None:
    blobs = list((trained.folder / "hub").glob("models--*/blobs/*"))
    blob = max((b for b in blobs if b.is_file()), key=lambda b: b.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    assert trained.states() == {**dict.fromkeys(STAGES, "cached"), "fetch everything": "run"}


def test_another_learning_rate_runs_train_and_what_follows(trained: Bench) -> None:
    assert trained.states("train.learning_rate=1e-3") == {
        **dict.fromkeys(STAGES, "cached"), "train": "run", "evaluate": "run",
    }  # fmt: skip


def test_one_byte_of_one_data_file_runs_validate_and_what_follows_but_not_fetch(trained: Bench) -> None:
    """And the champion is evaluated on the new data, with the prompts of its training: it is the rival."""
    root, held = trained.folder / "store", outcome_of(trained)
    folder = Path(held["adapter"])
    adapter, report = restored(read_receipt(folder), folder, Adapter), EvalReport.model_validate(held["evaluation"])
    trained_on = read_receipt(folder).inputs["data"]
    promote(root, "demo", adapter=adapter, report=report, data_digest=trained_on, reason="for the test")
    encoded = {path.parent for path in root.glob("encode/*/receipt.json")}
    path = next((trained.folder / "data").glob("*.json"))
    before = path.read_bytes()
    path.write_bytes(before.replace(b"the", b"thy", 1))
    try:
        outcome = outcome_of(trained, "encode.instructions=Score as a rater would.")
    finally:
        path.write_bytes(before)
    states = {s["stage"]: "cached" if s["cached"] else "run" for s in outcome["stages"]}
    assert states == {**dict.fromkeys(STAGES, "run"), "fetch tokenizer": "cached", "fetch everything": "cached"}
    assert outcome["verdict"]["comparison"]["rival"] == "champion"
    assert "evaluated anew on these items" in outcome["verdict"]["comparison"]["why"]
    new = [read_receipt(path.parent) for path in root.glob("encode/*/receipt.json") if path.parent not in encoded]
    assert {receipt.config["instructions"][:8] for receipt in new} == {"Score as", "Score th"}
    assert len({receipt.inputs["records"] for receipt in new}) == 1
    assert set(trained.states().values()) == {"cached"}


def outcome_of(bench: Bench, *changes: str) -> dict[str, Any]:
    """What one whole run hands over."""
    done = bench.flow(*changes)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("base.revision=nowhere", "nowhere"),
        ("base.repo_id=owner/absent", "owner/absent"),
        ("train.device=cuda", "this machine has no GPU for train"),
        ("train.learnig_rate=1", "did you mean learning_rate?"),
        ("data.files=[absent/*.json]", "absent/*.json"),
        ("train.lora.target_modules=[nothing_proj]", "nothing_proj match no weight"),
    ],
)
def test_a_failed_precondition_is_one_sentence_and_exit_code_2(bench: Bench, change: str, says: str) -> None:
    done = bench.flow(change)
    assert done.returncode == 2
    assert says in sentence(done)
    assert not (bench.folder / "store" / "train").exists() or "train" not in done.stdout


def test_a_gated_repo_is_one_sentence_and_exit_code_2(bench: Bench, repositories: Path) -> None:
    with LoopbackHub(repositories, access={REPO_ID: "gated"}, token="the-right-one") as gated:
        done = bench.flow(f"runtime.hub_endpoint={gated.url}")
    assert done.returncode == 2
    last = sentence(done)
    assert last.startswith("GatedRepo")
    assert "HF_TOKEN" in last


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_sentence_and_exit_code_2(bench: Bench, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine allows no mount")
    try:
        done = bench.flow(f"runtime.hub_cache={tmp_path}/hub")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.returncode == 2
    last = sentence(done)
    assert last.startswith("NotEnoughDisk")
    assert f"{tmp_path}/hub: 0.0 GB free" in last


def test_empty_data_is_one_sentence_and_exit_code_2(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    done = bench.flow(f"data.files=[{tmp_path}/empty.json]")
    assert done.returncode == 2
    assert sentence(done).startswith("BadData")


def test_the_report_names_figures_and_stands_alone(trained: Bench) -> None:
    done = trained.flow()
    page = Path(json.loads(done.stdout.splitlines()[-1])["page"])
    text = page.read_text()
    assert "QWK" in text
    card = Path(json.loads(done.stdout.splitlines()[-1])["adapter"]) / "aside" / "README.md"
    assert "base_model: gradelora/tiny-gpt-oss" in card.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert 'src="https:' not in text


def test_the_flow_leaves_no_process_behind(trained: Bench) -> None:
    """Whatever a run started carries its store's path or has ended."""
    trained.states()
    mine = str(os.getpid())
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert str(trained.folder) not in command or entry.parent.name == mine, command
