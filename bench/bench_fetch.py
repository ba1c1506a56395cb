"""Side by side: stock snapshot_download, hf_transfer and http against a Hub that caps each connection.

`python bench/bench_fetch.py [--mib 400] [--cap 12]`: seconds, rate, peak memory, and what a kill at
half way costs.  Everything runs on loopback in processes of its own.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

MIB = 2**20
REPO = "bench/model"
ENGINES = ("stock", "hf_transfer", "http")


def serve(root: Path, cap_bytes_per_s: float, pipe: Connection) -> None:
    """The Hub; answers each message with the bytes that its CDN has sent."""
    from gradelora.sandbox.hub import Fault, LoopbackHub, Throttle

    with LoopbackHub(root, faults=[Fault(Throttle(cap_bytes_per_s), on="cdn", times=None)]) as hub:
        pipe.send(hub.url)
        while pipe.recv() == "sent":
            pipe.send(hub.sent(server="cdn"))


def download(url: str, cache: Path, engine: str, connections: int, pipe: Connection) -> None:
    """One whole download; sends seconds and peak bytes of memory."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    from gradelora.config import BaseModelConfig, FetchConfig, Runtime
    from gradelora.fetch import fetch
    from gradelora.resolve import resolve

    runtime = Runtime.model_validate(
        {"hub_endpoint": url, "hub_cache": cache, "fetch_engine": engine, "fetch_connections": connections}
    )
    base = resolve(BaseModelConfig(repo_id=REPO, revision="main"), runtime=runtime)
    started = time.monotonic()
    pipe.send("started")
    fetch(FetchConfig(part="everything"), base, out=cache, runtime=runtime)
    seconds = time.monotonic() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    pipe.send((seconds, peak * 1024))


class Bench:
    """A Hub with one large file, and downloads of it."""

    def __init__(self, root: Path, mib: int, cap: float, connections: int) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.root, self.size, self.connections = root, mib * MIB, connections
        # In a process of its own: memory at its peak is inherited by every later child.
        writer = self.context.Process(target=write_model, args=(root / "hub" / REPO, self.size))
        writer.start()
        writer.join()
        self.pipe, far = self.context.Pipe()
        self.hub = self.context.Process(target=serve, args=(root / "hub", cap * MIB, far), daemon=True)
        self.hub.start()
        self.url = self.pipe.recv()

    def sent(self) -> int:
        """Bytes that the CDN has sent so far."""
        self.pipe.send("sent")
        return int(self.pipe.recv())

    def start(self, engine: str) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        """A download that has begun."""
        near, far = self.context.Pipe()
        arguments = (self.url, self.root / engine, engine, self.connections, far)
        process = self.context.Process(target=download, args=arguments)
        process.start()
        near.recv()
        return process, near

    def whole(self, engine: str) -> tuple[float, int]:
        """Seconds and peak memory of one undisturbed download."""
        shutil.rmtree(self.root / engine, ignore_errors=True)
        process, pipe = self.start(engine)
        seconds, peak = pipe.recv()
        process.join()
        return seconds, peak

    def killed(self, engine: str) -> float:
        """Share of the file that is fetched twice when a SIGKILL comes at half way."""
        shutil.rmtree(self.root / engine, ignore_errors=True)
        before = self.sent()
        process, _ = self.start(engine)
        while self.sent() - before < self.size / 2:
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        time.sleep(0.5)
        process, pipe = self.start(engine)
        pipe.recv()
        process.join()
        return (self.sent() - before - self.size) / self.size


def write_model(folder: Path, size: int) -> None:
    """One safetensors file of random bytes and a config."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({"w": np.random.default_rng(0).integers(0, 255, size, np.uint8)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def judge(times_stock: float, carried: float, twice: float, peak_mb: float) -> None:
    """Our own engine against what is asked of it; a busy machine can miss the first two."""
    for what, value, asked, met in (
        ("times stock", f"{times_stock:.1f}", "5", times_stock >= 5),
        ("of what the capped connections carry", f"{carried:.2f}", "0.9", carried >= 0.9),
        ("fetched twice after a kill at half way", f"{twice:.2%}", "under 1 %", twice < 0.01),
        ("MB of memory at the peak", f"{peak_mb:.0f}", "under 200", peak_mb < 200),
    ):
        print(f"http: {value} {what} (asked: {asked}): {'met' if met else 'MISSED'}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python bench/bench_fetch.py", description=__doc__)
    parser.add_argument("--mib", type=int, default=400, help="size of the file")
    parser.add_argument("--cap", type=float, default=12, help="MiB/s that the Hub gives each connection")
    parser.add_argument("--connections", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradelora-bench-") as folder:
        bench = Bench(Path(folder), asked.mib, asked.cap, asked.connections)
        print(f"{asked.mib} MiB, {asked.cap:g} MiB/s a connection, {asked.connections} connections; sha256 included")
        print("engine       seconds   MiB/s  x stock  of cap  peak MB  twice after kill")
        stock_s, measured = 0.0, {}
        for engine in ENGINES:
            seconds, peak = bench.whole(engine)
            stock_s = stock_s or seconds
            rate, twice = asked.mib / seconds, bench.killed(engine)
            carried = rate / (asked.cap * (1 if engine == "stock" else asked.connections))
            measured[engine] = (stock_s / seconds, carried, twice, peak / 1e6)
            print(
                f"{engine:12} {seconds:7.1f} {rate:7.1f} {stock_s / seconds:8.1f} {carried:7.2f}"
                f" {peak / 1e6:8.0f} {twice:17.1%}",
                flush=True,
            )
        judge(*measured["http"])
        bench.pipe.send("end")
        bench.hub.join()


if __name__ == "__main__":
    main()
