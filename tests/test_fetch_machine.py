"""Downloads on machines as they are: full and read-only disks, proxies, kills at the worst moment."""

import contextlib
import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest

from gradelora.errors import BadConfig, NotEnoughDisk
from gradelora.fetch.part import BLOCK_BYTES
from gradelora.hub import RepoCache
from gradelora.sandbox.hub import Fault, LoopbackHub, Throttle
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


@pytest.fixture
def hub(tmp_path):
    write_big(tmp_path / "hub", 3 * MIB + 12345)
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def runtime(hub, tmp_path):
    changes = {"fetch_engine": "http", "fetch_connections": 4, "fetch_stall_s": 2.0}
    return runtime_for(hub, tmp_path / "cache").model_copy(update=changes)


@pytest.fixture
def base(runtime):
    return resolved(runtime, repo_id=BIG)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, mounted where the cache is; gives a way to mount it anew."""
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", *options.split(), "tmpfs", cache], capture_output=True)
        if done.returncode:
            pytest.skip(f"mount is refused here: {done.stderr.decode().strip()}")

    mount("-o size=2m")
    yield mount
    subprocess.run(["umount", cache], check=True)


@pytest.mark.parametrize("engine", ["http", pytest.param("hf_transfer", marks=pytest.mark.slow), "stock"])
def test_a_full_disk_is_named_and_room_is_all_it_takes(hub, runtime, small_disk, base, tmp_path, engine):
    runtime = runtime.model_copy(update={"fetch_engine": engine})
    before = hub.sent(server="cdn")
    with pytest.raises(NotEnoughDisk, match="set HF_HUB_CACHE"):
        fetched(runtime, base, tmp_path)
    if engine != "stock":
        assert hub.sent(server="cdn") == before, "refused before a byte"
    small_disk("-o remount,size=20m")
    assert is_right(fetched(runtime, base, tmp_path), base)


@pytest.mark.slow
def test_a_disk_that_others_fill_meanwhile_costs_no_finished_block(hub, runtime, small_disk, base, tmp_path):
    """The part is allocated at the beginning; the journal's few bytes are all that can still fail."""
    small_disk("-o remount,size=4m")
    hub.faults.append(Fault(Throttle(MIB / 2), on="cdn", times=None))
    before = hub.sent(server="cdn")
    child = start(runtime, base, tmp_path)
    wait_for_bytes(hub, before + MIB)
    with contextlib.suppress(OSError), (tmp_path / "cache" / "others").open("wb", buffering=0) as others:
        while True:
            others.write(b"x" * 4096)
    said, _ = child.communicate(timeout=20)
    hub.faults.clear()
    (tmp_path / "cache" / "others").unlink()
    assert child.returncode == 0 or "NotEnoughDisk" in said
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.sent(server="cdn") - before <= shard(base).size + 4 * 3 * BLOCK_BYTES


def test_a_read_only_cache_serves_what_is_whole(hub, runtime, small_disk, base, tmp_path):
    small_disk("-o remount,size=20m")
    first = fetched(runtime, base, tmp_path)
    small_disk("-o remount,ro")
    before = hub.sent(server="cdn")
    assert fetched(runtime, base, tmp_path) == first
    assert hub.sent(server="cdn") == before


def test_a_read_only_cache_that_lacks_a_file_is_said_with_the_way_out(runtime, small_disk, base, tmp_path):
    small_disk("-o remount,ro")
    with pytest.raises(BadConfig, match=r"cannot be written.*3\.2 MB are missing.*set HF_HUB_CACHE"):
        fetched(runtime, base, tmp_path)


@pytest.mark.parametrize("engine", ["http", pytest.param("hf_transfer", marks=pytest.mark.slow), "stock"])
def test_without_symbolic_links_the_file_lies_in_the_snapshot_once(hub, runtime, base, tmp_path, engine, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    runtime = runtime.model_copy(update={"fetch_engine": engine})
    snapshot = fetched(runtime, base, tmp_path)
    assert is_right(snapshot, base)
    assert not (snapshot.path / "model.safetensors").is_symlink()
    before = hub.sent(server="cdn")
    assert fetched(runtime, base, tmp_path).digest == snapshot.digest
    assert hub.sent(server="cdn") == before
    copies = {p.stat().st_ino for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size > MIB}
    assert len(copies) == 1


KILLED = """
import os, pathlib, signal, sys
from gradelora.artifacts import BaseModel
from gradelora.config import Runtime
from gradelora.fetch import part
from tests.hub_samples import fetched

moment, sig = sys.argv[4], getattr(signal, sys.argv[5])
die = lambda: (os.kill(os.getpid(), sig), signal.pause())

class Dying(type(pathlib.Path())):
    def rename(self, target):
        if moment == "before the rename":
            die()
        super().rename(target)
        if moment == "between rename and link":
            die()

opened = part.Part.open
def open_dying(self):
    self.path = Dying(self.path)
    opened(self)
    if moment == "at 0 bytes":
        die()
part.Part.open = open_dying
base, runtime = (t.model_validate_json(open(p).read()) for t, p in zip((BaseModel, Runtime), sys.argv[1:3]))
fetched(runtime, base, pathlib.Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sig", ["SIGKILL", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", ["at 0 bytes", "before the rename", "between rename and link"])
def test_a_kill_at_the_worst_moment_costs_no_byte(hub, runtime, base, tmp_path, moment, sig):
    (tmp_path / "base.json").write_text(base.model_dump_json())
    (tmp_path / "runtime.json").write_text(runtime.model_dump_json())
    before = hub.sent(server="cdn")
    argv = [sys.executable, "-c", KILLED, *(str(tmp_path / n) for n in ("base.json", "runtime.json", "")), moment, sig]
    killed = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert killed.returncode in (-getattr(signal, sig), 1 if sig == "SIGINT" else None), killed.stderr
    cache = RepoCache(runtime.hub_cache, BIG)
    assert cache.blob(shard(base)).exists() == (moment == "between rename and link")
    assert not cache.snapshot(base.commit).exists()
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert hub.sent(server="cdn") - before == shard(base).size
    assert not list(cache.parts.iterdir())


@pytest.mark.slow
def test_a_dead_holder_of_the_lease_blocks_nobody(hub, runtime, base, tmp_path, capsys):
    hub.faults.append(Fault(Throttle(MIB / 4), on="cdn", times=None))
    before = hub.sent(server="cdn")
    holder = start(runtime, base, tmp_path)
    wait_for_bytes(hub, before + MIB // 2)
    assert RepoCache(runtime.hub_cache, BIG).busy
    holder.kill()
    holder.communicate()
    hub.faults.clear()
    assert not RepoCache(runtime.hub_cache, BIG).busy
    started = time.monotonic()
    assert is_right(fetched(runtime, base, tmp_path), base)
    assert time.monotonic() - started < 3
    assert "waiting for it" not in capsys.readouterr().out


class Proxy(http.server.ThreadingHTTPServer):
    """Passes plain requests on and remembers them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.passed: list[str] = []


class Relay(http.server.BaseHTTPRequestHandler):
    def relay(self) -> None:
        url = urlsplit(self.path)
        self.server.passed.append(self.path)
        there = http.client.HTTPConnection(url.netloc)
        there.request(self.command, self.path.removeprefix(f"http://{url.netloc}"), headers=dict(self.headers))
        answer = there.getresponse()
        body = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = relay  # noqa: N815

    def log_message(self, format, *args) -> None:
        pass


@pytest.fixture
def proxy():
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield proxy
        proxy.shutdown()


@pytest.mark.parametrize("engine", ["http", pytest.param("hf_transfer", marks=pytest.mark.slow)])
def test_proxy_endpoint_and_home_of_the_environment_are_honoured(hub, proxy, tmp_path, engine):
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    proxy_url = f"http://127.0.0.1:{proxy.server_port}"
    env = {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HTTP_PROXY": proxy_url,
        "http_proxy": proxy_url,
    }
    argv = [sys.executable, "-m", "gradelora.cli", "fetch", "--repo", BIG, "--json", "--engine", engine]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"].startswith(str(tmp_path / "home" / "hub"))
    assert {urlsplit(url).netloc for url in proxy.passed} == {urlsplit(u).netloc for u in (hub.url, hub.cdn_url)}
    assert len(proxy.passed) == len(hub.requests)
