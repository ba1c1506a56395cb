"""`gradelora doctor`: a line a check, ok or the remedy, and never a secret."""

import base64
import http.server
import importlib.metadata
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradelora import doctor
from gradelora.cli import main
from gradelora.config import Runtime, StoreConfig
from gradelora.config_file import load_config
from gradelora.doctor import Finding, examine
from tests.conftest import ROOT

SECRET = "hf_thisIsNobodysToken"


class Answers(http.server.BaseHTTPRequestHandler):
    """A Hub and a Prefect server in one: who the token belongs to, health, the GPU limit."""

    known: dict[str, tuple[int, object]]
    password: str = ""

    def do_GET(self) -> None:
        status, body = self.known.get(self.path, (404, {"error": "not found"}))
        asked = f"Basic {base64.b64encode(self.password.encode()).decode()}"
        if self.password and self.path.startswith("/prefect") and self.headers.get("Authorization") != asked:
            status, body = 401, {"error": "Unauthorized"}
        if self.path == "/api/whoami-v2" and self.headers.get("Authorization") != f"Bearer {SECRET}":
            status, body = 401, {"error": "Invalid credentials"}
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Answers.password = ""
    Answers.known = {
        "/api/whoami-v2": (200, {"type": "user", "name": "someone"}),
        "/prefect/health": (200, True),
        "/prefect/v2/concurrency_limits/gpu": (200, {"limit": 1}),
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "PREFECT_API_URL", "HF_HUB_ENABLE_HF_TRANSFER"):
        monkeypatch.delenv(name, raising=False)


def found(tmp_path: Path, **runtime: object) -> dict[str, Finding]:
    values = {"hub_cache": tmp_path / "hub", "hub_retries": 0, "hub_timeout_s": 2} | runtime
    return {f.check: f for f in examine(Runtime.model_validate(values), StoreConfig(root=tmp_path / "store"))}


def test_every_check_is_one_line_and_what_is_not_ok_has_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok  ", "look")) for line in lines)
    assert all("  -> " in line for line in lines if line.startswith("look"))
    checks = [line[5:].split("  ")[0] for line in lines]
    assert {"python", "packages", "ninja", "g++", "driver", "gpus", "hub cache", "store", "orphans", "token"} <= set(
        checks
    )
    assert not (tmp_path / ".gradelora").exists(), "looking leaves no trace"


def test_machines_get_the_same_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    findings = [Finding.model_validate(entry) for entry in json.loads(capsys.readouterr().out)]
    assert "python" in {f.check for f in findings}


def test_a_missing_and_a_drifted_package_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["prefect==1.0.0", "surely-not-installed>=2", "pydantic>=2"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    findings = found(tmp_path)
    assert findings["package prefect"].found.endswith("tested with ==1.0.0")
    assert findings["package prefect"].remedy == "pip install 'prefect==1.0.0'"
    assert findings["package surely-not-installed"].remedy == "pip install 'surely-not-installed>=2'"
    assert findings["packages"].found.startswith("1 as tested")


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "tool_path", lambda: str(tmp_path))
    findings = found(tmp_path)
    assert (findings["g++"].ok, findings["g++"].remedy) == (False, "apt-get install g++")
    assert not findings["ninja"].ok


def test_a_driver_with_a_torch_for_cpus_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_version", lambda: "570.86")
    monkeypatch.setattr(doctor, "_version", lambda _: "2.13.0+cpu")
    assert "built for CPUs" in found(tmp_path)["driver"].found
    monkeypatch.setattr(doctor, "_version", lambda _: "2.13.0")
    assert found(tmp_path)["driver"].ok


def test_orphans_are_told_apart_from_parts_that_a_fetch_goes_on_with(tmp_path: Path) -> None:
    assert found(tmp_path)["orphans"].ok
    repo = tmp_path / "hub" / "models--owner--name"
    for path in (repo / "blobs" / "abc.123.incomplete", repo / "gradelora" / "parts" / f"{'a' * 64}.part"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 5000)
    findings = found(tmp_path)
    assert findings["orphans"].found.startswith("1 parts of abandoned downloads")
    assert not findings["orphans"].ok
    assert "goes on from them" in findings["downloads"].found


def test_a_token_is_checked_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not set" in found(tmp_path)["token"].found
    for token, accepted in ((SECRET, True), (SECRET + "x", False)):
        monkeypatch.setenv("HF_TOKEN", token)
        finding = found(tmp_path, hub_endpoint=server)["token"]
        assert finding.ok == accepted, finding
        assert token not in finding.model_dump_json()
    assert SECRET not in capsys.readouterr().out


def test_the_prefect_server_and_the_gpu_limit_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/prefect")
    findings = found(tmp_path)
    assert findings["prefect"].ok
    assert findings["gpu limit"].ok
    del Answers.known["/prefect/v2/concurrency_limits/gpu"]
    assert found(tmp_path)["gpu limit"].remedy == "prefect gcl create gpu --limit 1"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert found(tmp_path)["prefect"].remedy == "prefect server start"


def test_a_stale_switch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ENABLE_HF_TRANSFER", "1")
    assert not found(tmp_path)["hf_transfer"].ok


def test_the_servers_own_password_is_sent_and_its_refusal_is_told_as_one(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    profile = f'active = "here"\n[profiles.here]\nPREFECT_API_URL = "{server}/prefect"\n'
    (home / "profiles.toml").write_text(profile)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    for name in ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    assert found(tmp_path)["prefect"].found == f"{server}/prefect"
    Answers.password = "admin:secret"
    refused = found(tmp_path)
    assert refused["prefect"].found.endswith("answers 401")
    assert "PREFECT_API_AUTH_STRING" in refused["prefect"].remedy
    assert "gpu limit" not in refused
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
    assert found(tmp_path)["gpu limit"].ok
    Answers.known["/prefect/v2/concurrency_limits/gpu"] = (500, {})
    assert found(tmp_path)["gpu limit"].found == "not told: answers 500"


def test_a_run_on_cpus_is_told_of_no_driver(tmp_path: Path) -> None:
    run = load_config(ROOT / "deployments" / "demo.yaml", [f"store.root={tmp_path / 'store'}"])
    checks = {f.check for f in examine(run.runtime, run.store, run)}
    assert not {"driver", "gpus"} & checks
    assert {"store", "hub cache"} <= checks


def test_a_driver_too_old_for_torchs_cuda_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.torch_cuda() == (torch.version.cuda or "")
    monkeypatch.setattr(doctor, "driver_version", lambda: "535.104.05")
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(doctor, "_version", lambda _: "2.13.0")
    driver = found(tmp_path)["driver"]
    assert not driver.ok
    assert driver.remedy == "install driver 580 or newer"
