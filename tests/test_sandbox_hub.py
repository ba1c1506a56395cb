"""The loopback Hub against the unmodified huggingface_hub client."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gradelora.sandbox.hub import (
    Cut,
    Empty,
    Fault,
    Flip,
    IgnoreRange,
    LoopbackHub,
    Short,
    Stall,
    Status,
    Throttle,
    WrongContentRange,
)
from tests.hub_samples import REPO, SHARDS, write_repository

TOKEN = "hf_a_secret_of_the_tests"


@pytest.fixture
def root(tmp_path):
    write_repository(tmp_path / "hub")
    return tmp_path / "hub"


def resolve_url(hub, name, revision="main"):
    return f"{hub.url}/{REPO}/resolve/{revision}/{name}"


def get(url, **headers):
    return httpx.get(url, headers=headers, follow_redirects=True, timeout=10)


def test_stock_snapshot_download_brings_every_byte_and_verifies(root, tmp_path):
    with LoopbackHub(root) as hub:
        path = Path(snapshot_download(REPO, endpoint=hub.url, cache_dir=tmp_path / "cache"))
        found = HfApi(endpoint=hub.url).verify_repo_checksums(REPO, cache_dir=tmp_path / "cache")
    originals = [p for p in (root / REPO).rglob("*") if p.is_file()]
    assert found.checked_count == len(originals)
    assert not found.mismatches
    assert not found.missing_paths
    for original in originals:
        assert (path / original.relative_to(root / REPO)).read_bytes() == original.read_bytes()


def test_the_snapshot_is_found_again_without_the_hub(root, tmp_path):
    with LoopbackHub(root) as hub:
        online = snapshot_download(REPO, endpoint=hub.url, cache_dir=tmp_path)
        url = hub.url
    assert snapshot_download(REPO, endpoint=url, cache_dir=tmp_path, local_files_only=True) == online


def test_the_api_tells_sizes_hashes_trees_and_refs(root):
    (root / f"{REPO}@v1").mkdir()
    (root / f"{REPO}@v1" / "config.json").write_text("{}")
    with LoopbackHub(root, page_entries=3) as hub:
        api = HfApi(endpoint=hub.url)
        info = api.model_info(REPO, files_metadata=True)
        sizes = {s.rfilename: s.size for s in info.siblings}
        assert sizes == {
            p.relative_to(root / REPO).as_posix(): p.stat().st_size for p in (root / REPO).rglob("*") if p.is_file()
        }
        assert [bool(s.lfs) for s in info.siblings if s.rfilename in (SHARDS[0], "config.json")] == [False, True]
        tree = {e.path for e in api.list_repo_tree(REPO, recursive=True)}
        assert tree == {*sizes, "original", "metal"}
        assert {e.path for e in api.list_repo_tree(REPO)} == {n for n in tree if "/" not in n}
        assert [e.path for e in api.list_repo_tree(REPO, "metal")] == ["metal/model.bin"]
        assert [e.path for e in api.get_paths_info(REPO, ["config.json", "absent"])] == ["config.json"]
        refs = {b.name: b.target_commit for b in api.list_repo_refs(REPO).branches}
        assert refs["main"] == info.sha
        assert refs["v1"] == api.model_info(REPO, revision="v1").sha != info.sha


def test_a_branch_moves_and_its_old_commit_is_still_served(root, tmp_path):
    with LoopbackHub(root) as hub:
        api = HfApi(endpoint=hub.url)
        old = api.model_info(REPO).sha
        (root / REPO / "config.json").write_text('{"changed": true}')
        assert api.model_info(REPO).sha != old
        path = hf_hub_download(REPO, "config.json", revision=old, endpoint=hub.url, cache_dir=tmp_path)
        assert "gpt_oss" in Path(path).read_text()


def test_unknown_repository_revision_and_file_are_told_apart(root):
    with LoopbackHub(root) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("openai/absent")
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="absent")
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download(REPO, "absent.json", endpoint=hub.url, cache_dir=root.parent / "cache")


def test_gated_and_private_repositories_open_with_the_right_token_alone(root, tmp_path):
    with LoopbackHub(root, token=TOKEN, access={REPO: "gated"}) as hub:
        for wrong in (False, "hf_another"):
            with pytest.raises(GatedRepoError):
                hf_hub_download(REPO, "config.json", endpoint=hub.url, token=wrong, cache_dir=tmp_path)
        assert hf_hub_download(REPO, "config.json", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
        hub.access[REPO] = "private"
        for wrong in (False, "hf_another"):
            with pytest.raises(RepositoryNotFoundError):
                HfApi(endpoint=hub.url, token=wrong).model_info(REPO)
        assert HfApi(endpoint=hub.url, token=TOKEN).model_info(REPO).private


def test_the_token_never_reaches_the_cdn(root, tmp_path):
    with LoopbackHub(root, token=TOKEN) as hub:
        snapshot_download(REPO, endpoint=hub.url, cache_dir=tmp_path, token=TOKEN)
        assert {r.authorized for r in hub.requests if r.server == "hub"} == {True}
        assert {r.authorized for r in hub.requests if r.server == "cdn"} == {False}


def test_ranges_are_served_as_http_says(root):
    whole = (root / REPO / SHARDS[0]).read_bytes()
    with LoopbackHub(root) as hub:
        url = resolve_url(hub, SHARDS[0])
        middle = get(url, Range="bytes=100-199")
        assert (middle.status_code, middle.content) == (206, whole[100:200])
        assert middle.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
        assert get(url, Range="bytes=-10").content == whole[-10:]
        assert get(url, Range=f"bytes={len(whole) - 5}-").content == whole[-5:]
        assert get(url, Range=f"bytes={len(whole)}-").status_code == 416
        assert next(r.range for r in hub.requests if r.server == "cdn") == "bytes=100-199"


def test_upload_folder_arrives_as_plain_files(root, tmp_path):
    source = root / REPO
    with LoopbackHub(root, token=TOKEN) as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        api.create_repo("me/copy")
        api.create_repo("me/copy", exist_ok=True)
        commit = api.upload_folder(repo_id="me/copy", folder_path=source)
        assert commit.oid == api.model_info("me/copy").sha
        assert (root / "me/copy" / SHARDS[0]).read_bytes() == (source / SHARDS[0]).read_bytes()
        api.delete_file("LICENSE", "me/copy")
        assert not (root / "me/copy/LICENSE").exists()
        path = hf_hub_download(
            "me/copy", "LICENSE", revision=commit.oid, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path
        )
        assert Path(path).read_text() == "Apache-2.0"
        with pytest.raises(Exception, match="401"):
            HfApi(endpoint=hub.url, token=False).upload_file(
                path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/copy"
            )


def test_large_files_go_up_by_the_lfs_protocol(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with LoopbackHub(root, uploads="lfs") as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        api.create_repo("me/lfs")
        (root / "large").mkdir()
        (root / "large" / "w.safetensors").write_bytes(os.urandom(1000))
        api.upload_folder(repo_id="me/lfs", folder_path=root / "large")
        assert [r.method for r in hub.requests if "lfs-upload" in r.path] == ["PUT"]
        assert (root / "me/lfs/w.safetensors").read_bytes() == (root / "large" / "w.safetensors").read_bytes()


def test_a_commit_cannot_write_outside_its_folder(root):
    line = (
        '{"key": "header", "value": {"summary": "x"}}\n{"key": "file", "value": {"path": "../../out", "content": ""}}'
    )
    with LoopbackHub(root) as hub:
        answer = httpx.post(f"{hub.url}/api/models/{REPO}/commit/main", content=line)
        assert answer.status_code == 400
    assert not (root / "out").exists()


def test_urls_cannot_read_outside_the_root(root):
    (root.parent / "secret").write_text("secret")
    with LoopbackHub(root) as hub:
        for path in (f"{REPO}/resolve/main/..%2f..%2f..%2fsecret", "..%2f..%2f/x/resolve/main/secret"):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(f"{hub.url}/{path}", timeout=5)
            assert error.value.code in (401, 404)


def test_every_fault_shows_on_the_wire(root):
    whole = (root / REPO / SHARDS[0]).read_bytes()
    with LoopbackHub(root) as hub:
        url = resolve_url(hub, SHARDS[0])

        def once(effect, **headers):
            hub.faults.append(Fault(effect, on="cdn"))
            return get(url, **headers)

        limited = once(Status(429, retry_after_s=7))
        assert (limited.status_code, limited.headers["Retry-After"]) == (429, "7")
        with pytest.raises(httpx.RemoteProtocolError):
            once(Cut(1000))
        assert once(Empty()).content == b""
        flipped = once(Flip(70_000)).content
        assert [i for i, (a, b) in enumerate(zip(whole, flipped, strict=True)) if a != b] == [70_000]
        assert once(IgnoreRange(), Range="bytes=5-9").content == whole
        assert once(Short(2), Range="bytes=5-9").content == whole[5:8]
        assert once(WrongContentRange(3), Range="bytes=5-9").headers["Content-Range"].startswith("bytes 8-12/")
        hub.faults.append(Fault(Stall(10, seconds=5), on="cdn"))
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(url, follow_redirects=True, timeout=0.2)
        slow = once(Throttle(len(whole) / 0.4))
        assert slow.elapsed.total_seconds() > 0.15
        assert slow.content == whole
        assert get(url).content == whole
        assert [f.fired for f in hub.faults] == [1] * len(hub.faults)


def test_a_link_to_the_cdn_expires(root):
    with LoopbackHub(root, link_lifetime_s=-1) as hub:
        assert get(resolve_url(hub, SHARDS[0])).status_code == 403


def test_the_module_serves_until_sigterm(root):
    argv = [sys.executable, "-m", "gradelora.sandbox.hub", str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        try:
            assert HfApi(endpoint=url).model_info(REPO).id == REPO
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
