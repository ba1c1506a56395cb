"""Downloads into the Hub cache that cannot be wrong."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, scan_cache_dir, snapshot_download

from gradelora import child
from gradelora.artifacts import sha256_file
from gradelora.config import FetchConfig
from gradelora.errors import ChecksumMismatch, HubUnavailable, NotCached, UnsupportedModel
from gradelora.fetch import fetch
from gradelora.hub import RepoCache
from gradelora.sandbox.hub import Cut, Fault, Flip, LoopbackHub, Status
from tests.hub_samples import REPO, SHARDS, fetched, resolved, runtime_for, write_repository

TOKEN = "hf_a_secret_of_the_tests"


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


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("gradelora.hub.client.time.sleep", lambda s: None)
    monkeypatch.setattr("gradelora.fetch.ranges.LONGEST_PAUSE_S", 0.01)


def test_everything_is_the_model_and_no_byte_more(root, hub, runtime, tmp_path):
    base = resolved(runtime)
    snapshot = fetched(runtime, base, tmp_path)
    assert [f.name for f in snapshot.files] == [f.name for f in base.remote_files]
    for file in snapshot.files:
        assert (snapshot.path / file.name).read_bytes() == (root / REPO / file.name).read_bytes()
        assert file.sha256 == sha256_file(root / REPO / file.name)
    present = {p.relative_to(snapshot.path).as_posix() for p in snapshot.path.rglob("*") if p.is_file()}
    assert present == {f.name for f in snapshot.files}
    assert not [r for r in hub.requests if "metal" in r.path or "original" in r.path]


def test_the_tokenizer_comes_first_and_alone(runtime, tmp_path):
    base = resolved(runtime)
    small = fetched(runtime, base, tmp_path, part="tokenizer")
    assert not [f.name for f in small.files if f.name.endswith(".safetensors")]
    assert {"tokenizer.json", "chat_template.jinja", "config.json"} <= {f.name for f in small.files}
    whole = fetched(runtime, base, tmp_path)
    assert small.path == whole.path
    assert small.digest != whole.digest


def test_a_second_fetch_transfers_nothing_and_gives_the_same(hub, runtime, tmp_path):
    base = resolved(runtime)
    first = fetched(runtime, base, tmp_path)
    before = hub.sent()
    assert fetched(runtime, base, tmp_path) == first
    assert hub.sent() == before


def test_a_flipped_byte_is_caught_and_fetched_again(hub, runtime, tmp_path):
    base = resolved(runtime)
    shard = next(f for f in base.remote_files if f.name == SHARDS[0])
    hub.faults.append(Fault(Flip(5000), on="cdn", path=shard.sha256))
    with pytest.raises(ChecksumMismatch, match=SHARDS[0]):
        fetched(runtime, base, tmp_path)
    # Of this shard alone: the other one may have been cut off half-way when this one was refused.
    before = hub.sent(server="cdn", path=shard.sha256)
    snapshot = fetched(runtime, base, tmp_path)
    assert hub.sent(server="cdn", path=shard.sha256) - before == shard.size
    assert sha256_file(snapshot.path / SHARDS[0]) == shard.sha256


def test_a_flipped_byte_in_a_small_file_is_caught_too(hub, runtime, tmp_path):
    base = resolved(runtime)
    hub.faults.append(Fault(Flip(3), on="resolve", path="tokenizer.json"))
    with pytest.raises(ChecksumMismatch, match=r"tokenizer\.json"):
        fetched(runtime, base, tmp_path, part="tokenizer")
    assert fetched(runtime, base, tmp_path, part="tokenizer")


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "dangling", "no link"])
def test_a_damaged_cache_is_mended(hub, runtime, tmp_path, damage):
    base = resolved(runtime)
    whole = fetched(runtime, base, tmp_path)
    link = whole.path / SHARDS[0]
    blob = link.resolve()
    contents = blob.read_bytes()
    match damage:
        case "truncated":
            blob.write_bytes(contents[:-1])
        case "longer":
            blob.write_bytes(contents + b"x")
        case "flipped":
            blob.write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
        case "dangling":
            blob.unlink()
        case "no link":
            link.unlink()
    if damage == "flipped":
        with pytest.raises(ChecksumMismatch):
            fetched(runtime, base, tmp_path)
    before = hub.sent(server="cdn")
    mended = fetched(runtime, base, tmp_path)
    assert link.read_bytes() == contents
    assert mended.digest == whole.digest
    assert hub.sent(server="cdn") - before == (0 if damage == "no link" else len(contents))


def test_a_branch_that_moves_meanwhile_changes_nothing(root, runtime, tmp_path):
    base = resolved(runtime)
    old = (root / REPO / "tokenizer.json").read_text()
    (root / REPO / "tokenizer.json").write_text('{"version": "moved"}')
    snapshot = fetched(runtime, base, tmp_path)
    assert (snapshot.path / "tokenizer.json").read_text() == old
    assert snapshot.commit == base.commit != resolved(runtime).commit


@pytest.mark.parametrize(
    ("effect", "place"), [(Status(503), "cdn"), (Status(503), "head"), (Status(429, 1), "api"), (Cut(2000), "cdn")]
)
def test_what_passes_is_tried_again(hub, runtime, tmp_path, effect, place):
    base = resolved(runtime)
    hub.faults.append(Fault(effect, on=place, times=2))
    assert fetched(runtime, base, tmp_path).files
    assert hub.faults[0].fired == 2


def test_what_stays_is_transient(hub, runtime, tmp_path):
    base = resolved(runtime)
    hub.faults.append(Fault(Status(503), on="cdn", times=None))
    with pytest.raises(HubUnavailable, match="503"):
        fetched(runtime, base, tmp_path)


def test_a_name_that_leaves_the_folder_is_refused(runtime, tmp_path):
    base = resolved(runtime)
    evil = base.remote_files[0].model_copy(update={"name": "../../evil.json"})
    with pytest.raises(UnsupportedModel, match="leave its folder"):
        fetched(runtime, base.model_copy(update={"remote_files": (evil,)}), tmp_path)


def test_the_token_stays_at_the_hub(root, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with LoopbackHub(root, token=TOKEN, access={REPO: "gated"}) as hub:
        runtime = runtime_for(hub, tmp_path / "cache")
        snapshot = fetched(runtime, resolved(runtime), tmp_path)
        assert {r.authorized for r in hub.requests if r.server == "cdn"} == {False}
    assert TOKEN not in snapshot.model_dump_json() + "".join(capfd.readouterr())


def test_orphans_of_the_stock_client_are_reported_with_their_size(runtime, tmp_path, capsys):
    base = resolved(runtime)
    cache = RepoCache(runtime.hub_cache, REPO)
    cache.blobs.mkdir(parents=True)
    (cache.blobs / "0123.4567.incomplete").write_bytes(b"x" * 2500)
    fetched(runtime, base, tmp_path)
    assert "1 orphaned parts of earlier downloads hold 2.5 kB" in capsys.readouterr().out


def test_huggingface_hub_accepts_the_cache_offline(hub, runtime, tmp_path, monkeypatch):
    base = resolved(runtime)
    snapshot = fetched(runtime, base, tmp_path)
    checked = HfApi(endpoint=hub.url).verify_repo_checksums(REPO, revision=base.commit, cache_dir=runtime.hub_cache)
    assert checked.checked_count == len(snapshot.files)
    assert not checked.mismatches
    scanned = scan_cache_dir(runtime.hub_cache)
    assert not scanned.warnings
    assert [r.refs for r in next(iter(scanned.repos)).revisions] == [{"main"}]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = [f.name for f in snapshot.files]
    assert snapshot_download(REPO, cache_dir=runtime.hub_cache, allow_patterns=names) == str(snapshot.path)
    assert fetched(runtime, base, tmp_path) == snapshot


def test_offline_a_missing_file_is_said_and_not_waited_for(runtime, tmp_path, monkeypatch):
    base = resolved(runtime)
    fetched(runtime, base, tmp_path, part="tokenizer")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotCached, match="HF_HUB_OFFLINE"):
        fetched(runtime, base, tmp_path)


def test_it_runs_as_a_stage_in_a_child_process(runtime, tmp_path):
    base = resolved(runtime)
    lines: list[str] = []
    out = tmp_path / "out"
    config = FetchConfig(part="everything")
    snapshot = child.call(fetch, config, base, out=out, runtime=runtime, on_line=lines.append)
    assert snapshot == fetched(runtime, base, tmp_path)
    assert any("missing" in line for line in lines)
    assert not [p for p in out.rglob("*") if p.is_file() and Path("aside") not in p.relative_to(out).parents]


def test_without_symbolic_links_nothing_is_fetched_twice(hub, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    base = resolved(runtime)
    stock = runtime.model_copy(update={"fetch_engine": "stock"})
    first = fetched(stock, base, tmp_path)
    assert not (first.path / SHARDS[0]).is_symlink()
    before = hub.sent(server="cdn")
    assert fetched(runtime, base, tmp_path).digest == first.digest
    assert hub.sent(server="cdn") == before
