"""The engines http and hf_transfer against everything that a network, a disk and a kill can do."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradelora.artifacts import sha256_file
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
from tests.hub_samples import fetched, resolved, runtime_for, write_json

BIG = "big/model"
MIB = 2**20


@pytest.fixture
def root(tmp_path):
    """One file of 24 MiB and a little more."""
    folder = tmp_path / "hub" / BIG
    folder.mkdir(parents=True)
    weights = np.random.default_rng(0).integers(0, 255, 24 * MIB + 12345, np.uint8)
    save_file({"w": weights}, folder / "model.safetensors")
    write_json(folder / "config.json", {})
    return tmp_path / "hub"


@pytest.fixture
def hub(root):
    with LoopbackHub(root) as hub:
        yield hub


@pytest.fixture
def runtime(hub, tmp_path):
    return runtime_for(hub, tmp_path / "cache").model_copy(
        update={"fetch_engine": "http", "fetch_connections": 4, "fetch_stall_s": 1.0}
    )


@pytest.fixture
def base(runtime):
    return resolved(runtime, repo_id=BIG)


def shard(base):
    return next(f for f in base.remote_files if f.sha256)


def is_right(snapshot, base):
    return sha256_file(snapshot.path / shard(base).name) == shard(base).sha256


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
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.faults[0].fired == 1


def test_a_host_that_stays_away_is_transient_and_keeps_what_came(hub, runtime, base, tmp_path):
    half(hub, runtime, base, tmp_path)
    before = hub.sent(server="cdn")
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.sent(server="cdn") - before == shard(base).size - 16 * MIB


def test_a_hub_that_stays_away_is_transient(hub, runtime, base, tmp_path, monkeypatch):
    monkeypatch.setattr("gradelora.fetch.ranges.LONGEST_PAUSE_S", 0.01)
    hub.faults.append(Fault(Status(503), on="head", times=None))
    with pytest.raises(HubUnavailable, match="answered 503"):
        fetched(runtime, base, tmp_path)


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradelora.fetch.ranges.LONGEST_PAUSE_S", 0.01)
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


CHILD = """
import sys
from gradelora.artifacts import BaseModel
from gradelora.config import Runtime
from pathlib import Path
from tests.hub_samples import fetched
base, runtime = (t.model_validate_json(Path(p).read_text()) for t, p in zip((BaseModel, Runtime), sys.argv[1:3]))
print(fetched(runtime, base, Path(sys.argv[3])).digest, flush=True)
"""


def start(runtime, base, tmp_path):
    """A fetch in a process of its own."""
    (tmp_path / "base.json").write_text(base.model_dump_json())
    (tmp_path / "runtime.json").write_text(runtime.model_dump_json())
    argv = [sys.executable, "-c", CHILD, tmp_path / "base.json", tmp_path / "runtime.json", tmp_path]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for_bytes(hub, count, seconds=15):
    until = time.monotonic() + seconds
    while hub.sent(server="cdn") < count and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.slow
def test_after_a_kill_at_half_way_only_what_is_missing_is_fetched(hub, runtime, base, tmp_path, sig):
    hub.faults.append(Fault(Throttle(6 * MIB), on="cdn", times=None))
    child = start(runtime, base, tmp_path)
    before = hub.sent(server="cdn")
    wait_for_bytes(hub, before + shard(base).size // 2)
    asked = time.monotonic()
    child.send_signal(sig)
    child.communicate(timeout=10)
    assert time.monotonic() - asked < 2
    time.sleep(0.3)
    arrived = hub.sent(server="cdn") - before
    assert arrived < shard(base).size
    hub.faults.clear()
    assert is_right(fetched(runtime, base, tmp_path), base)
    twice = hub.sent(server="cdn") - before - shard(base).size
    # A block of each connection, and what lay in socket buffers.
    print(f"fetched twice: {twice / MIB:.1f} MiB of {shard(base).size / MIB:.0f}")
    assert twice <= runtime.fetch_connections * 3 * BLOCK_BYTES


@pytest.mark.slow
def test_a_killed_hf_transfer_is_continued_from_its_data_and_holes(hub, runtime, base, tmp_path):
    runtime = runtime.model_copy(update={"fetch_engine": "hf_transfer", "fetch_stall_s": 10})
    hub.faults.append(Fault(Throttle(6 * MIB), on="cdn", times=None))
    child = start(runtime, base, tmp_path)
    before = hub.sent(server="cdn")
    wait_for_bytes(hub, before + shard(base).size * 3 // 4)
    child.kill()
    child.communicate(timeout=10)
    time.sleep(0.5)
    arrived = hub.sent(server="cdn") - before
    time.sleep(0.3)
    assert hub.sent(server="cdn") - before == arrived < shard(base).size, "hf_transfer outlived its parent"
    hub.faults.clear()
    assert is_right(fetched(runtime, base, tmp_path), base)
    fetched_again = hub.sent(server="cdn") - before - arrived
    assert fetched_again < shard(base).size
    assert arrived + fetched_again - shard(base).size <= 4 * 5 * MIB


@pytest.mark.slow
def test_hf_transfer_that_hangs_is_ended_and_replaced(hub, runtime, base, tmp_path, capfd):
    runtime = runtime.model_copy(update={"fetch_engine": "hf_transfer"})
    hub.faults.append(Fault(Stall(MIB, seconds=60), on="cdn", times=1, skip=1))
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert "was ended after" in capfd.readouterr().out


@pytest.mark.parametrize(
    "effect", [IgnoreRange(), Short(1000), Flip(9 * MIB), Status(500)], ids=lambda e: type(e).__name__
)
@pytest.mark.slow
def test_hf_transfer_is_never_believed(hub, runtime, base, tmp_path, effect):
    runtime = runtime.model_copy(update={"fetch_engine": "hf_transfer"})
    hub.faults.append(Fault(effect, on="cdn", times=1, skip=1))
    try:
        snapshot = fetched(runtime, base, tmp_path)
    except ChecksumMismatch:
        snapshot = fetched(runtime, base, tmp_path)
    assert is_right(snapshot, base)


@pytest.mark.parametrize("flock_works", [True, False])
@pytest.mark.slow
def test_two_processes_share_one_download(hub, runtime, base, tmp_path, flock_works, monkeypatch):
    hub.faults.append(Fault(Throttle(8 * MIB), on="cdn", times=None))
    before = hub.sent(server="cdn")
    other = start(runtime, base, tmp_path)
    wait_for_bytes(hub, before + MIB)
    if not flock_works:
        monkeypatch.setattr("gradelora.fetch.lease.fcntl.flock", lambda fd, how: None)
    mine = fetched(runtime, base, tmp_path)
    output, _ = other.communicate(timeout=20)
    assert output.splitlines()[-1] == mine.digest
    assert is_right(mine, base)
    if flock_works:
        assert hub.sent(server="cdn") - before == shard(base).size


@pytest.mark.slow
def test_fifty_random_kills_end_in_a_verified_snapshot(hub, runtime, base, tmp_path):
    rng = random.Random(0)
    hub.faults.append(Fault(Throttle(3 * MIB), on="cdn", times=None))
    before, whole = hub.sent(server="cdn"), 1
    for _ in range(50):
        child = start(runtime, base, tmp_path)
        for line in child.stdout:
            if "engine" in line or "Error" in line:
                break
        try:
            child.wait(rng.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            child.kill()
        else:
            # It came to its end before the kill: begin again.
            assert child.returncode == 0
            shutil.rmtree(runtime.hub_cache)
            whole += 1
        child.communicate()
    hub.faults.clear()
    assert is_right(fetched(runtime, base, tmp_path), base)
    ratio = (hub.sent(server="cdn") - before) / (whole * shard(base).size)
    print(f"50 kills, {whole} whole downloads: {ratio:.2f} times their size fetched")


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
