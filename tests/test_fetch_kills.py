"""Downloads that are killed, hang, or share a cache: processes of their own, and what is fetched again."""

import random
import shutil
import signal
import subprocess
import time

import pytest

from gradelora.errors import ChecksumMismatch
from gradelora.fetch.part import BLOCK_BYTES
from gradelora.sandbox.hub import Fault, Flip, IgnoreRange, LoopbackHub, Short, Stall, Status, Throttle
from tests.hub_samples import (
    BIG,
    MIB,
    fetched,
    is_right,
    resolved,
    runtime_for,
    shard,
    start,
    wait_for_bytes,
    write_big,
)

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
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


def test_hf_transfer_that_hangs_is_ended_and_replaced(hub, runtime, base, tmp_path, capfd):
    runtime = runtime.model_copy(update={"fetch_engine": "hf_transfer"})
    hub.faults.append(Fault(Stall(MIB, seconds=60), on="cdn", times=1, skip=1))
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert "was ended after" in capfd.readouterr().out


@pytest.mark.parametrize(
    "effect", [IgnoreRange(), Short(1000), Flip(9 * MIB), Status(500)], ids=lambda e: type(e).__name__
)
def test_hf_transfer_is_never_believed(hub, runtime, base, tmp_path, effect):
    runtime = runtime.model_copy(update={"fetch_engine": "hf_transfer"})
    hub.faults.append(Fault(effect, on="cdn", times=1, skip=1))
    try:
        snapshot = fetched(runtime, base, tmp_path)
    except ChecksumMismatch:
        snapshot = fetched(runtime, base, tmp_path)
    assert is_right(snapshot, base)


@pytest.mark.parametrize("flock_works", [True, False])
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
