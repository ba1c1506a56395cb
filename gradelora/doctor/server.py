"""The Prefect server that runs would report to, and the slot that training holds there."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx

from gradelora.doctor.finding import Finding

PREFECT_HOME = Path("~/.prefect")
TIMEOUT_S = 10.0


def prefect_settings() -> dict[str, str]:
    """As Prefect reads them: the environment before the active profile.  Prefect itself is not imported."""
    home = Path(os.environ.get("PREFECT_HOME") or PREFECT_HOME).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
        profile = {key: str(value) for key, value in profiles.get("profiles", {}).get(name, {}).items()}
    except (OSError, ValueError, AttributeError):
        profile = {}
    return profile | {key: value for key, value in os.environ.items() if key.startswith("PREFECT_")}


def server_findings() -> Iterator[Finding]:
    """Whether it answers to what this environment holds, and whether the limit is there; no secret is shown."""
    settings = prefect_settings()
    api = settings.get("PREFECT_API_URL", "")
    if not api:
        yield Finding(check="prefect", ok=True, found="PREFECT_API_URL is not set: runs start a server of their own")
        return
    user, _, password = settings.get("PREFECT_API_AUTH_STRING", "").partition(":")
    key = settings.get("PREFECT_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=TIMEOUT_S, auth=(user, password) if user else None, headers=headers) as client:
        try:
            health, limit = (client.get(f"{api}{path}") for path in ("/health", "/v2/concurrency_limits/gpu"))
        except httpx.HTTPError as error:
            yield Finding(check="prefect", ok=False, found=f"{api}: {error}", remedy="prefect server start")
            return
    refused = next((answer.status_code for answer in (health, limit) if answer.status_code in (401, 403)), None)
    if refused or not health.is_success:
        remedy = "set PREFECT_API_AUTH_STRING as the server has it" if refused else "look at the server's log"
        yield Finding(check="prefect", ok=False, found=f"{api}: answers {refused or health.status_code}", remedy=remedy)
        return
    yield Finding(check="prefect", ok=True, found=api)
    missing = limit.status_code == 404
    told = "there" if limit.is_success else ("missing" if missing else f"not told: answers {limit.status_code}")
    remedy = "prefect gcl create gpu --limit 1" if missing else "look at the server's log"
    yield Finding(check="gpu limit", ok=limit.is_success, found=told, remedy=remedy)
