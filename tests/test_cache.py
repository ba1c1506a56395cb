"""`gradelora cache`, and `fetch` and `verify` without a configuration."""

import fcntl
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from gradelora import child
from gradelora.artifacts import Adapter, EvalReport, Interval
from gradelora.champion import promote, refuse, rollback
from gradelora.cli import main
from gradelora.config import FetchConfig, Runtime
from gradelora.fetch import fetch
from gradelora.hub import RepoCache
from gradelora.preflight.disk import missing_bytes
from gradelora.sandbox.hub import LoopbackHub
from gradelora.store import Obtained, Store
from tests import toy
from tests.hub_samples import REPO, SHARDS, resolved, runtime_for, write_repository
from tests.toy import Toy, ToyConfig

RUNTIME = Runtime()


@pytest.fixture
def hub(tmp_path):
    write_repository(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def runtime(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return runtime_for(hub, tmp_path / "cache")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def obtain(store: Store, stage=toy.toy, *inputs, word="a") -> Obtained[Toy]:
    return store.obtain(stage, ToyConfig(word=word), *inputs, runtime=RUNTIME, run=child.here)


def listed(capsys, tmp_path, *more: str) -> dict[str, dict]:
    """What the command shows, by name."""
    capsys.readouterr()
    assert cache(tmp_path, "--json", *more) == 0
    return {e["name"]: e for e in json.loads(capsys.readouterr().out)}


def cache(tmp_path, *more: str) -> int:
    return main(["cache", "--store", str(tmp_path / "store"), "--cache-dir", str(tmp_path / "cache"), *more])


def named(obtained: Obtained[Toy]) -> str:
    return f"{obtained.stage}/{obtained.artifact.path.name[:12]}"


def test_an_input_is_needed_by_the_sealed_stage_that_lists_it(store, tmp_path, capsys):
    first = obtain(store)
    second = obtain(store, toy.after, first.artifact, word="b")
    shown = listed(capsys, tmp_path)
    assert shown[named(first)]["needed_by"] == [named(second)]
    assert shown[named(second)]["needed_by"] == []
    assert shown[named(first)]["size_bytes"] > 0
    assert shown[named(first)]["last_used"].startswith("20")


def test_a_file_that_two_artifacts_share_counts_once(store, tmp_path, capsys):
    """As the shards of two merges of the same weights."""
    one, other = (obtain(store, word=word).artifact.path for word in "ab")
    (one / "shard").write_bytes(os.urandom(2**20))
    before = listed(capsys, tmp_path)
    os.link(one / "shard", other / "shard")
    after = listed(capsys, tmp_path)
    total = [sum(entry["size_bytes"] for entry in shown.values()) for shown in (before, after)]
    assert total[0] == total[1]
    assert min(entry["size_bytes"] for entry in after.values()) >= 2**19


def test_only_what_nothing_needs_is_removed_and_only_when_agreed(store, tmp_path, capsys, monkeypatch):
    first = obtain(store)
    second = obtain(store, toy.after, first.artifact, word="b")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert cache(tmp_path, "--unneeded") == 1
    assert second.artifact.path.is_dir()
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert first.artifact.path.is_dir()
    assert not second.artifact.path.exists()
    assert cache(tmp_path, named(first), "--yes") == 0
    assert not list(store.folders())
    assert not [p for p in store.root.glob("*/*") if p.suffix != ".lock"]
    assert not obtain(store).cached


def test_nobody_there_to_answer_removes_nothing(store, tmp_path, capsys, monkeypatch):
    first = obtain(store)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cache(tmp_path, named(first)) == 1
    assert first.artifact.path.is_dir()


def test_an_unknown_name_is_refused_before_anything_is_removed(store, tmp_path, capsys):
    first = obtain(store)
    assert cache(tmp_path, named(first), "train/0123", "--yes") == 2
    assert "train/0123: nothing has this name" in capsys.readouterr().err
    assert first.artifact.path.is_dir()


def promoted(store: Store, word: str) -> Obtained[Adapter]:
    """A champion whose adapter lies in the store."""
    facts = {"repo_id": "a/b", "commit": "0" * 40, "trainable_parameters": 1, "total_parameters": 2, "steps": 1}

    def train(config: ToyConfig, *, out: Path, runtime: Runtime) -> Adapter:
        (out / "adapter.txt").write_text(config.word)
        return Adapter.collect(out, **facts, final_loss=0.5)

    train.__module__ = "tests.toy"
    obtained = store.obtain(train, ToyConfig(word=word), runtime=RUNTIME, run=child.here)
    promote(store.root, "h200", adapter=obtained.artifact, report=nothing_measured(), data_digest="", reason="better")
    return obtained


def nothing_measured() -> EvalReport:
    nothing = Interval(value=None, low=None, high=None)
    figures = {"base_qwk": nothing, "adapter_qwk": nothing, "qwk_gain": nothing}
    return EvalReport(path=Path(), files=(), split="unseen_answers", items=0, **figures)


def test_the_champion_and_those_before_it_stay(store, tmp_path, capsys):
    first, second = promoted(store, "first"), promoted(store, "second")
    for kept in (first, second):
        assert listed(capsys, tmp_path)[named(kept)]["needed_by"] == ["the champion of h200"]
        assert cache(tmp_path, named(kept), "--yes") == 2
        assert "needed by the champion of h200" in capsys.readouterr().err
    rollback(store.root, "h200")
    assert listed(capsys, tmp_path)[named(second)]["unneeded"]
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert first.artifact.path.is_dir()
    assert not second.artifact.path.exists()


def test_a_refused_adapter_is_kept_until_it_is_named(store, tmp_path, capsys):
    made = promoted(store, "refused")
    rollback(store.root, "h200")
    refuse(store.root, "h200", adapter=made.artifact, report=nothing_measured(), data_digest="", reason="no better")
    assert listed(capsys, tmp_path)[named(made)]["needed_by"] == ["the refusal of h200"]
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert made.artifact.path.is_dir()
    assert cache(tmp_path, named(made), "--yes") == 0
    assert not made.artifact.path.exists()


def test_nothing_is_unneeded_while_a_run_is_in_progress(store, tmp_path, capsys):
    read, idle = obtain(store), obtain(store, word="idle")
    building = store.root / "after" / ".0123456789abcdef.building"
    (building / "aside").mkdir(parents=True)
    (building / "aside" / "request.json").write_text(json.dumps({"arguments": [str(read.artifact.path)]}))
    with (building.parent / ".0123456789abcdef.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = listed(capsys, tmp_path)
        assert shown[named(read)]["locked"]
        assert shown[named(idle)]["needed_by"] == ["perhaps after/0123456789ab, a run in progress"]
        assert cache(tmp_path, "after/0123456789ab.building", "--yes") == 2
        assert cache(tmp_path, named(read), "--yes") == 2
        assert cache(tmp_path, "--unneeded", "--yes") == 0
        assert len(list(store.folders())) == 2
    # The holder is gone: what it left behind is needed by nothing, and nothing is held back for it.
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert not list(store.folders())
    assert not building.exists()


def test_an_unfinished_training_is_kept_for_the_next_run(store, tmp_path, capsys):
    building = store.root / "train" / ".0123456789abcdef.building"
    building.mkdir(parents=True)
    (building / "step-3").write_bytes(b"x")
    assert listed(capsys, tmp_path)["train/0123456789ab.building"]["needed_by"] == [
        "the next run, which goes on from it"
    ]
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert building.is_dir()
    assert cache(tmp_path, "train/0123456789ab.building", "--yes") == 0
    assert not building.exists()


def test_a_model_is_needed_by_whoever_needs_its_snapshot(runtime, store, tmp_path, capsys):
    base = resolved(runtime)
    snapshot = store.obtain(fetch, FetchConfig(part="everything"), base, runtime=runtime, run=child.here).artifact
    name = f"hub/{REPO}@{base.commit[:12]}"
    assert listed(capsys, tmp_path)[name]["needed_by"] == []

    def reader(config: ToyConfig, model: object, *, out: Path, runtime: Runtime) -> Toy:
        return Toy.collect(out, length=0)

    reader.__module__ = "tests.toy"
    store.obtain(reader, ToyConfig(), snapshot, runtime=RUNTIME, run=child.here)
    assert listed(capsys, tmp_path)[name]["needed_by"][0].startswith("reader/")
    assert cache(tmp_path, name, "--yes") == 0
    assert not [r for r in scan_cache_dir(tmp_path / "cache").repos if r.revisions]
    mended = store.obtain(fetch, FetchConfig(part="everything"), base, runtime=runtime, run=child.here)
    assert not mended.cached
    assert mended.artifact.digest == snapshot.digest


def test_a_model_of_another_program_is_shown_and_left_alone(runtime, store, tmp_path, capsys):
    base = resolved(runtime)
    fetch(FetchConfig(part="everything"), base, out=tmp_path, runtime=runtime)
    shutil.rmtree(RepoCache(runtime.hub_cache, REPO).notes)
    entry = listed(capsys, tmp_path)[f"hub/{REPO}@{base.commit[:12]}"]
    assert (entry["ours"], entry["unneeded"]) == (False, False)
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert scan_cache_dir(tmp_path / "cache").repos


def test_unneeded_without_a_store_is_refused(runtime, tmp_path, capsys):
    base = resolved(runtime)
    fetch(FetchConfig(part="everything"), base, out=tmp_path, runtime=runtime)
    assert main(["cache", "--cache-dir", str(tmp_path / "cache"), "--unneeded", "--yes"]) == 2
    assert main(["cache", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "unknown: no store is given" in capsys.readouterr().out


def test_parts_are_kept_for_the_next_fetch_and_orphans_are_not(runtime, store, tmp_path, capsys):
    base = resolved(runtime)
    repo = RepoCache(runtime.hub_cache, REPO)
    for folder, name in ((repo.parts, f"{'a' * 64}.part"), (repo.blobs, "0.1.incomplete"), (repo.blobs, "b" * 64)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 5000)
    assert base.commit
    theirs = tmp_path / "cache" / ".locks" / repo.folder.name / "0.lock"
    theirs.parent.mkdir(parents=True)
    with theirs.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(capsys, tmp_path)[f"hub/{REPO}/orphans"]["needed_by"] == ["a download in progress"]
    assert cache(tmp_path, "--unneeded", "--yes") == 0
    assert list(listed(capsys, tmp_path)) == [f"hub/{REPO}/parts"]
    assert cache(tmp_path, f"hub/{REPO}/parts", "--yes") == 0
    assert listed(capsys, tmp_path) == {}


def fetch_cli(tmp_path, *more: str) -> int:
    return main(["fetch", "--repo", REPO, "--cache-dir", str(tmp_path / "cache"), *more])


@pytest.mark.parametrize("engine", ["auto", "http", "stock", "xet"])
def test_fetch_needs_no_configuration_and_prints_one_object(runtime, tmp_path, capsys, engine):
    assert fetch_cli(tmp_path, "--json", "--engine", engine) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["commit"] == resolved(runtime).commit
    assert (Path(facts["path"]) / SHARDS[0]).is_file()
    assert "fetch: engine" in said.err
    if engine == "xet":
        assert "the host offers no Xet" in said.err


def test_xet_is_refused_where_it_cannot_be_used(runtime, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert fetch_cli(tmp_path, "--engine", "xet") == 2
    assert "HF_HUB_DISABLE_XET" in capsys.readouterr().err


@pytest.mark.slow
def test_the_old_switch_for_hf_transfer_is_explained_and_honoured(runtime, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_ENABLE_HF_TRANSFER", "1")
    assert fetch_cli(tmp_path) == 0
    said = capsys.readouterr().err
    assert "huggingface_hub ignores it since 1.0" in said
    assert "engine hf_transfer with 8 connections: HF_HUB_ENABLE_HF_TRANSFER is set" in said


def test_fetch_removes_orphans_when_told_and_keeps_parts_that_it_goes_on_with(runtime, tmp_path, capsys):
    base = resolved(runtime)
    repo = RepoCache(runtime.hub_cache, REPO)
    shard = next(f for f in base.remote_files if f.sha256)
    left = [repo.blobs / "0.1.incomplete", repo.parts / f"{'a' * 64}.part"]
    kept = repo.parts / f"{shard.sha256}.part"
    for path in (*left, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
    assert fetch_cli(tmp_path) == 0
    said = capsys.readouterr().err
    assert "2 orphaned parts" in said
    assert f"gradelora fetch --repo {REPO}" in said
    assert all(path.exists() for path in left)
    assert fetch_cli(tmp_path, "--yes") == 0
    assert not any(path.exists() for path in left)


def test_fetch_without_repo_or_config_says_what_to_name(capsys):
    assert main(["fetch"]) == 2
    assert "--repo OWNER/NAME, or a configuration with --config" in capsys.readouterr().err
    assert main(["fetch", "--repo", "nonsense"]) == 2
    assert "write it as OWNER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "state"),
    [("flipped", "has other contents"), ("missing", "missing: its link"), ("no link", "missing"), ("none", "ok")],
)
def test_verify_reads_every_byte_of_a_model_and_removes_nothing(runtime, tmp_path, capsys, damage, state):
    fetch_cli(tmp_path)
    snapshot = RepoCache(runtime.hub_cache, REPO).snapshot(resolved(runtime).commit)
    blob = (snapshot / SHARDS[0]).resolve()
    before = blob.stat()
    match damage:
        case "flipped":
            contents = blob.read_bytes()
            blob.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
            # The time, too: only the bytes tell.
            os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "missing":
            blob.unlink()
        case "no link":
            (snapshot / SHARDS[0]).unlink()
    capsys.readouterr()
    verify = ["verify", "--repo", REPO, "--cache-dir", str(tmp_path / "cache"), "--json"]
    assert main([*verify, "--deep"]) == (0 if damage == "none" else 1)
    states = {row["file"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states[SHARDS[0]].startswith(state)
    assert {s for name, s in states.items() if name != SHARDS[0]} == {"ok"}
    if damage == "flipped":
        assert blob.exists()
        assert main([*verify, "--fast"]) == 0


def test_the_disk_sum_counts_neither_what_is_whole_nor_what_parts_take_up(runtime, tmp_path):
    base = resolved(runtime)
    total = sum(f.size for f in base.remote_files)
    repo = RepoCache(runtime.hub_cache, REPO)
    assert missing_bytes(base, tmp_path / "cache") == total
    shard = next(f for f in base.remote_files if f.name == SHARDS[0])
    repo.parts.mkdir(parents=True)
    (repo.parts / f"{shard.sha256}.part").write_bytes(b"x" * 8192)
    assert missing_bytes(base, tmp_path / "cache") == total - 8192
    copied = repo.snapshot(base.commit) / SHARDS[0]
    copied.parent.mkdir(parents=True)
    copied.write_bytes(bytes(shard.size))
    assert missing_bytes(base, tmp_path / "cache") == total - shard.size


def test_a_yes_on_the_terminal_removes(store, tmp_path, capsys, monkeypatch):
    first = obtain(store)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert cache(tmp_path, named(first)) == 0
    assert "removed 1" in capsys.readouterr().out
    assert not first.artifact.path.exists()
