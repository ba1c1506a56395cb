"""PostgreSQL, Redis, Prefect's API and its background services as processes of their own, on loopback.

For `bench/cluster_check.py`: everything lies in one temporary folder, nothing of the system's own
services is touched, and what was started is ended.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from bench.balancer import Balancer

ROOT = Path(__file__).parents[1]
DATABASE = "prefect"
# What an operator copies: so these very lines are tried.
SETTINGS = ROOT / "deployments" / "systemd" / "server.env.example"


class MissingProgram(Exception):
    """A Debian package is not installed; names it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 180) -> float:
    """Poll; the seconds that it took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if condition():
                return time.monotonic() - started
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.3)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s")


class Cluster:
    """One Prefect installation; `env` is what its servers, workers and clients share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._database_port, self._redis_port = free_port(), free_port()
        self._api_ports = {"api-0": free_port(), "api-1": free_port()}
        balancer = Balancer(list(self._api_ports.values()))
        balancer.start()
        redis = f"redis://127.0.0.1:{self._redis_port}"
        self.url = f"http://127.0.0.1:{balancer.port}/api"
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        database = f"postgresql+asyncpg://{DATABASE}@127.0.0.1:{self._database_port}/{DATABASE}"
        told = [line for line in SETTINGS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        settings = dict(line.replace("redis://redis:6379", redis).split("=", 1) for line in told)
        self.server_env = {**self.env, **settings, "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}

    def start_stores(self) -> None:
        """PostgreSQL as a user of its own, for it refuses root; Redis with its log of writes on."""
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        redis = shutil.which("redis-server")
        if not programs or redis is None:
            raise MissingProgram("apt-get install -y postgresql redis-server")
        data, binaries = self.folder / "postgresql", programs[-1]
        user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        data.mkdir(mode=0o700)
        shutil.chown(data, user)
        self.folder.chmod(0o755)
        initdb = [str(binaries / "initdb"), "--auth=trust", f"--username={DATABASE}", "--encoding=UTF8", str(data)]
        subprocess.run(initdb, user=user, check=True, stdout=subprocess.DEVNULL, cwd="/")
        server = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(self._database_port)]
        self._start("postgresql", [*server, "-k", str(data), "-c", "max_connections=200"], os.environ, user)
        self._start(
            "redis",
            [
                redis,
                "--port",
                str(self._redis_port),
                *["--bind", "127.0.0.1", "--appendonly", "yes", "--dir"],
                str(self.folder),
            ],
            os.environ,
        )
        ready = [
            str(binaries / "createdb"),
            "-h",
            "127.0.0.1",
            "-p",
            str(self._database_port),
            "-U",
            DATABASE,
            DATABASE,
        ]
        wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "PostgreSQL")

    def start_servers(self, *names: str) -> float:
        """`api-0`, `api-1` and, apart from them, `services`; the seconds until the named APIs answer."""
        prefect = [sys.executable, "-m", "prefect", "server"]
        started = time.monotonic()
        for name in names:
            if name in self._api_ports:
                api = ["start", "--host", "127.0.0.1", "--port", str(self._api_ports[name]), "--no-services"]
                self._start(name, [*prefect, *api], self.server_env)
                url = f"http://127.0.0.1:{self._api_ports[name]}/api/health"
                # One after the other: the first brings the database's tables up to date.
                wait_until(lambda url=url: httpx.get(url, timeout=5).is_success, name)
            else:
                self._start(name, [*prefect, "services", "start"], self.server_env)
        return time.monotonic() - started

    def start_worker(self, name: str, pool: str, limit: int, env: Mapping[str, str]) -> None:
        """One that runs `limit` flow runs at a time."""
        command = ["worker", "start", "--pool", pool, "--name", name, "--limit", str(limit)]
        self._start(name, [sys.executable, "-m", "prefect", *command], env)

    def run(self, *arguments: str) -> str:
        """`python -m ARGUMENTS`; its output."""
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
        return done.stdout

    def end(self, how: signal.Signals, *names: str) -> None:
        """Send a signal to all of them at once and wait until they are gone."""
        for name in names:
            self._running[name].send_signal(how)
        for name in names:
            self._running.pop(name).wait(60)

    def rows(self, query: str) -> str:
        """What PostgreSQL itself says, in one line."""
        place = ["-h", "127.0.0.1", "-p", str(self._database_port), "-U", DATABASE, "-d", DATABASE]
        return subprocess.run(
            ["psql", *place, "-Atc", query], capture_output=True, text=True, check=True
        ).stdout.strip()

    def keys(self) -> int:
        """Keys that Redis holds: streams of events, leases, counters."""
        command = ["redis-cli", "-p", str(self._redis_port), "--scan"]
        return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    def stop(self) -> None:
        """End everything, the newest first."""
        for name, process in reversed(self._running.items()):
            # PostgreSQL would wait for its clients at SIGTERM.
            process.send_signal(signal.SIGINT if name == "postgresql" else signal.SIGTERM)
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, argv: list[str], env: Mapping[str, str], user: str | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                argv, env=dict(env), cwd="/" if user else ROOT, stdout=log, stderr=subprocess.STDOUT, user=user
            )
