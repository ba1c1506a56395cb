"""Pinning the base model against a real Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradelora.artifacts import BaseModel
from gradelora.config import Runtime
from gradelora.errors import (
    GatedRepo,
    HubUnavailable,
    NotCached,
    RepoNotFound,
    RevisionNotFound,
    UnsupportedModel,
)
from gradelora.hub import HubClient
from gradelora.sandbox.hub import Cut, Fault, IgnoreRange, LoopbackHub, Status
from tests.hub_samples import REPO, SHARDS, fetched, resolved, runtime_for, write_json, write_repository

TOKEN = "hf_a_secret_of_the_tests"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def root(tmp_path):
    write_repository(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def hub(root):
    with LoopbackHub(root) as hub:
        yield hub


@pytest.fixture
def runtime(hub, tmp_path):
    return runtime_for(hub, tmp_path / "cache")


def test_sizes_hashes_and_tensors_are_those_of_the_files(root, runtime):
    base = resolved(runtime)
    files = {f.name: f for f in base.remote_files}
    assert {n: f.size for n, f in files.items()} == {n: (root / REPO / n).stat().st_size for n in files}
    assert all(files[n].sha256 for n in SHARDS)
    tensors = {t.name: (t.dtype, t.shape, t.file, t.nbytes) for t in base.tensors}
    assert tensors == {
        "embed": ("F32", (64, 512), SHARDS[0], 64 * 512 * 4),
        "blocks": ("U8", (4, 90, 16), SHARDS[0], 4 * 90 * 16),
        "head": ("F16", (64, 512), SHARDS[1], 64 * 512 * 2),
    }
    assert base.config["model_type"] == "gpt_oss"
    assert len(base.commit) == 40


def test_the_second_copies_pickles_and_other_formats_are_left_out(runtime):
    names = {f.name for f in resolved(runtime).remote_files}
    assert not [n for n in names if "/" in n or n.endswith((".bin", ".gguf"))]
    assert names == {
        *SHARDS,
        INDEX,
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    }


def test_only_kilobytes_are_read(tmp_path):
    write_repository(tmp_path / "hub", rows=4000)
    with LoopbackHub(tmp_path / "hub") as hub:
        base = resolved(runtime_for(hub, tmp_path))
        assert sum(f.size for f in base.remote_files) > 10_000_000
        assert sum(r.bytes_sent for r in hub.requests) < 100_000


def test_a_hub_that_ignores_ranges_is_not_read_to_the_end(tmp_path):
    write_repository(tmp_path / "hub", rows=20_000)
    faults = [Fault(IgnoreRange(), on="cdn", times=None)]
    with LoopbackHub(tmp_path / "hub", faults=faults) as hub:
        assert len(resolved(runtime_for(hub, tmp_path)).tensors) == 3
        assert hub.sent(server="cdn") < 20_000_000


def test_a_hub_that_ignores_ranges_gives_the_bytes_asked_for(root, hub, runtime):
    base = resolved(runtime)
    hub.faults.append(Fault(IgnoreRange(), on="cdn", times=None))
    got = HubClient(runtime).read(REPO, base.commit, SHARDS[0], 70_000, 70_100)
    assert got == (root / REPO / SHARDS[0]).read_bytes()[70_000:70_100]


def test_a_header_longer_than_the_first_request_is_read_whole(root, runtime):
    folder = root / "openai/wide"
    folder.mkdir()
    save_file({f"layer.{i}.weight": np.zeros(2, np.float32) for i in range(2000)}, folder / "model.safetensors")
    write_json(folder / "config.json", {})
    assert len(resolved(runtime, repo_id="openai/wide").tensors) == 2000


def test_the_same_commit_has_the_same_digest_and_a_moved_branch_another(root, runtime):
    first, again = resolved(runtime), resolved(runtime)
    assert first.digest == again.digest
    (root / REPO / "tokenizer.json").write_text('{"version": "2.0"}')
    moved = resolved(runtime)
    assert moved.commit != first.commit
    assert moved.digest != first.digest
    assert resolved(runtime, revision=first.commit).digest == first.digest


def test_what_does_not_exist_is_refused_with_its_remedy(runtime):
    with pytest.raises(RepoNotFound, match=r"openai/absent.*base\.repo_id"):
        resolved(runtime, repo_id="openai/absent")
    with pytest.raises(RevisionNotFound, match=r"no-such-branch.*base\.revision"):
        resolved(runtime, revision="no-such-branch")


@pytest.mark.parametrize("token", [None, "hf_of_another_account"])
def test_a_gated_repository_is_refused_without_telling_the_token(root, tmp_path, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with LoopbackHub(root, token=TOKEN, access={REPO: "gated"}) as hub:
        with pytest.raises(GatedRepo, match=r"accept its terms.*HF_TOKEN") as refused:
            resolved(runtime_for(hub, tmp_path))
        assert token is None or token not in str(refused.value)


def test_the_right_token_opens_it_and_never_reaches_the_cdn(root, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with LoopbackHub(root, token=TOKEN, access={REPO: "private"}) as hub:
        base = resolved(runtime_for(hub, tmp_path / "cache"))
        assert {r.authorized for r in hub.requests if r.server == "hub"} == {True}
        assert {r.authorized for r in hub.requests if r.server == "cdn"} == {False}
    assert TOKEN not in base.model_dump_json() + "".join(capfd.readouterr())
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and TOKEN in p.read_text(errors="replace")]


@pytest.mark.parametrize("place", ["api", "resolve", "cdn"])
def test_503_is_asked_again(hub, runtime, place, capsys):
    hub.faults.append(Fault(Status(503), on=place))
    assert resolved(runtime).commit
    assert hub.faults[0].fired == 1
    assert "answered 503" in capsys.readouterr().out


def test_429_waits_as_long_as_it_was_told(hub, runtime, monkeypatch):
    pauses = []
    monkeypatch.setattr("gradelora.hub.client.time.sleep", pauses.append)
    hub.faults += [Fault(Status(429, retry_after_s=17), on="api")]
    resolved(runtime)
    assert pauses == [17]
    hub.faults += [Fault(Status(429, retry_after_s=3600), on="api")]
    with pytest.raises(HubUnavailable, match="asks to wait 3600 s"):
        resolved(runtime)


def test_a_hub_that_stays_away_is_transient(hub, runtime, monkeypatch):
    monkeypatch.setattr("gradelora.hub.client.time.sleep", lambda s: None)
    hub.faults.append(Fault(Status(500), on="api", times=None))
    with pytest.raises(HubUnavailable, match="answered 500"):
        resolved(runtime)
    assert hub.faults[0].fired == runtime.hub_retries + 1
    nobody = Runtime(hub_endpoint="http://127.0.0.1:9", hub_cache=runtime.hub_cache, hub_retries=1)
    with pytest.raises(HubUnavailable, match="ConnectError"):
        resolved(nobody)


def test_a_cut_connection_is_asked_again(hub, runtime, monkeypatch):
    monkeypatch.setattr("gradelora.hub.client.time.sleep", lambda s: None)
    hub.faults.append(Fault(Cut(50), on="cdn"))
    assert len(resolved(runtime).tensors) == 3


def damaged(root, what):
    """Make the sample one that the index does not explain."""
    folder = root / REPO
    index = json.loads((folder / INDEX).read_text())
    match what:
        case "total":
            index["metadata"]["total_size"] += 1
        case "missing shard":
            (folder / SHARDS[1]).unlink()
        case "missing tensor":
            index["weight_map"]["ghost"] = SHARDS[1]
        case "truncated shard":
            path = folder / SHARDS[1]
            path.write_bytes(path.read_bytes()[:-1])
        case "escaping shard":
            index["weight_map"]["head"] = "../../other/model.safetensors"
        case "no header":
            (folder / SHARDS[1]).write_bytes(b"\xff" * 100)
    write_json(folder / INDEX, index)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("total", "headers add up to"),
        ("missing shard", "names model-00001"),
        ("missing tensor", "first ghost"),
        ("truncated shard", "its header explains"),
        ("escaping shard", "would leave its folder"),
        ("no header", "no safetensors header"),
    ],
)
def test_a_checkpoint_that_the_index_does_not_explain_is_refused(root, runtime, what, message):
    damaged(root, what)
    with pytest.raises(UnsupportedModel, match=message):
        resolved(runtime)


def test_pickle_weights_alone_are_refused(root, runtime):
    for name in (*SHARDS, INDEX):
        (root / REPO / name).unlink()
    with pytest.raises(UnsupportedModel, match="only safetensors"):
        resolved(runtime)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "a/../../b", "..\\outside"])
def test_a_listing_with_a_name_that_leaves_the_folder_is_refused(root, tmp_path, name):
    with LoopbackHub(root, spoofed={"tokenizer.json": name}) as hub, pytest.raises(UnsupportedModel, match="leave"):
        resolved(runtime_for(hub, tmp_path))


def test_offline_the_cache_gives_the_same_description(hub, runtime, tmp_path, monkeypatch):
    online = resolved(runtime)
    fetched(runtime, online, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert resolved(runtime) == online
    assert resolved(runtime, revision=online.commit) == online
    assert len(hub.requests) == before


def test_offline_without_the_model_says_what_to_do(runtime, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotCached, match="unset it or fetch"):
        resolved(runtime)


def test_resolving_imports_nothing_heavy(hub, tmp_path):
    code = (
        "import sys; from tests.hub_samples import resolved; from gradelora.config import Runtime\n"
        f"base = resolved(Runtime(hub_endpoint={hub.url!r}, hub_cache={str(tmp_path)!r}))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'great_expectations', 'prefect'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(base.model_dump_json())"
    )
    argv = [sys.executable, "-c", code]
    answer = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert len(BaseModel.model_validate_json(answer.stdout).tensors) == 3
