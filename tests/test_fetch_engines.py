"""The engines http and hf_transfer against everything that a network, a disk and a kill can do."""

import os
import resource

import pytest

from gradelora.errors import ChecksumMismatch, GatedRepo, HubUnavailable, NotEnoughDisk
from gradelora.fetch.part import BLOCK_BYTES
from gradelora.hub import RepoCache
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
from tests.hub_samples import BIG, MIB, fetched, is_right, resolved, runtime_for, shard, write_big


@pytest.fixture
def hub(tmp_path):
    write_big(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def runtime(hub, tmp_path):
    changes = {"fetch_engine": "http", "fetch_connections": 4, "fetch_stall_s": 1.0}
    return runtime_for(hub, tmp_path / "cache").model_copy(update=changes)


@pytest.fixture
def base(runtime):
    return resolved(runtime, repo_id=BIG)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("gradelora.fetch.ranges.LONGEST_PAUSE_S", 0.05)


def parts(runtime):
    return sorted(p.name for p in RepoCache(runtime.hub_cache, BIG).parts.glob("*"))


@pytest.mark.parametrize("engine", ["http", "hf_transfer"])
def test_every_byte_comes_once_over_several_connections(hub, runtime, base, tmp_path, engine):
    runtime = runtime.model_copy(update={"fetch_engine": engine})
    before = hub.sent(server="cdn")
    snapshot = fetched(runtime, base, tmp_path)
    assert is_right(snapshot, base)
    assert hub.sent(server="cdn") - before <= shard(base).size + 4096
    assert len({r.connection for r in hub.requests if r.server == "cdn" and r.range}) >= 4
    assert {r.authorized for r in hub.requests if r.server == "cdn"} == {False}
    assert parts(runtime) == []


@pytest.mark.parametrize(
    "effect",
    [
        Cut(3 * MIB // 2),
        Empty(),
        Stall(MIB, seconds=3),
        IgnoreRange(),
        Short(1000),
        WrongContentRange(MIB),
        Status(416),
        Status(503),
        Status(429),
        Status(429, retry_after_s=1),
    ],
    ids=lambda e: f"{type(e).__name__}{getattr(e, 'code', '')}{getattr(e, 'retry_after_s', '') or ''}",
)
def test_a_wrong_answer_costs_time_and_never_a_byte(hub, runtime, base, tmp_path, effect):
    hub.faults.append(Fault(effect, on="cdn", skip=1))
    before = hub.sent(server="cdn")
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.faults[0].fired == 1
    if isinstance(effect, WrongContentRange | IgnoreRange):
        assert hub.sent(server="cdn") - before > shard(base).size, "nothing of such an answer is used"


def test_a_host_that_stays_away_is_transient_and_keeps_what_came(hub, runtime, base, tmp_path):
    half(hub, runtime, base, tmp_path)
    before = hub.sent(server="cdn")
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.sent(server="cdn") - before == shard(base).size - 16 * MIB


def test_a_hub_that_stays_away_is_transient(hub, runtime, base, tmp_path):
    hub.faults.append(Fault(Status(503), on="head", times=None))
    with pytest.raises(HubUnavailable, match="answered 503"):
        fetched(runtime, base, tmp_path)


def test_auto_goes_over_to_the_stock_client_where_the_host_knows_no_ranges(hub, runtime, base, tmp_path, capsys):
    runtime = runtime.model_copy(update={"fetch_engine": "auto"})
    hub.faults.append(Fault(IgnoreRange(), on="cdn", times=None))
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert "engine stock: the host ignores Range" in capsys.readouterr().out
    assert parts(runtime) == []


def test_an_expired_link_is_replaced(hub, runtime, base, tmp_path, monkeypatch):
    monkeypatch.setattr("gradelora.fetch.ranges.RUN_BLOCKS", 4)
    hub.link_lifetime_s = 0.4
    hub.faults.append(Fault(Throttle(8 * MIB), on="cdn", times=None))
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert [r for r in hub.requests if r.server == "cdn" and r.status == 403]
    assert len([r for r in hub.requests if r.method == "HEAD"]) >= 2


def test_links_that_are_refused_even_fresh_end_it(hub, runtime, base, tmp_path):
    hub.faults.append(Fault(Status(403), on="cdn", times=None))
    with pytest.raises(HubUnavailable, match="refuses fresh links"):
        fetched(runtime, base, tmp_path)


def test_a_refusal_by_the_hub_is_not_tried_again(hub, runtime, base, tmp_path):
    hub.access[BIG] = "gated"
    with pytest.raises(GatedRepo):
        fetched(runtime, base, tmp_path)
    assert len([r for r in hub.requests if r.method == "HEAD"]) <= runtime.fetch_connections


def test_a_byte_flipped_on_the_wire_is_caught_before_it_is_published(hub, runtime, base, tmp_path):
    hub.faults.append(Fault(Flip(5 * MIB), on="cdn"))
    with pytest.raises(ChecksumMismatch):
        fetched(runtime, base, tmp_path)
    assert not RepoCache(runtime.hub_cache, BIG).blob(shard(base)).exists()
    assert is_right(fetched(runtime, base, tmp_path), base)


def half(hub, runtime, base, tmp_path):
    """Two runs of blocks (16 MiB) arrive on one connection, then the host goes away."""
    runtime = runtime.model_copy(update={"fetch_connections": 1})
    hub.faults.append(Fault(Status(503), on="cdn", times=None, skip=2))
    with pytest.raises(HubUnavailable):
        fetched(runtime, base, tmp_path)
    hub.faults.clear()
    cache = RepoCache(runtime.hub_cache, BIG)
    return cache.parts / f"{shard(base).sha256}.part", cache.parts / f"{shard(base).sha256}.journal"


@pytest.mark.parametrize("damage", ["journal", "ahead", "flip", "longer", "lost journal", "nonsense"])
def test_a_damaged_part_costs_its_blocks_alone(hub, runtime, base, tmp_path, damage):
    part, journal = half(hub, runtime, base, tmp_path)
    lines = journal.read_text().splitlines()
    first = int(lines[0].split()[0])
    extra = 0
    match damage:
        case "journal":
            journal.write_text("\n".join(["garbage", *lines[1:]]) + "\n12 1")
            extra = BLOCK_BYTES
        case "ahead":
            with journal.open("a") as file:
                file.write("90 00000000\n91 deadbeef\n")
        case "flip":
            with part.open("r+b") as file:
                file.seek(first * BLOCK_BYTES + 7)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))
            extra = BLOCK_BYTES
        case "longer":
            with part.open("ab") as file:
                file.write(b"x" * 5000)
        case "lost journal":
            journal.unlink()
            extra = 16 * MIB
        case "nonsense":
            journal.write_bytes(os.urandom(3000))
            extra = 16 * MIB
    before = hub.sent(server="cdn")
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.sent(server="cdn") - before == shard(base).size - 16 * MIB + extra


def test_a_full_disk_is_said_before_a_byte_is_fetched(hub, runtime, base, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = hub.sent(server="cdn")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, hard))
    try:
        with pytest.raises(NotEnoughDisk, match=r"no room for model\.safetensors.*HF_HUB_CACHE"):
            fetched(runtime, base, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hub.sent(server="cdn") == before
    assert is_right(fetched(runtime, base, tmp_path), base)
