"""`make demo`: the whole flow on a tiny gpt-oss from a loopback Hub, on two CPU ranks.

The first call builds the model (about a minute); a second one finds everything sealed.
"""

import os
import subprocess
import sys
from pathlib import Path

from gradelora.sandbox.hub import LoopbackHub

ROOT = Path(".demo")
REPO_ID = "gradelora/tiny-gpt-oss"


def environment(endpoint: str) -> dict[str, str]:
    """The environment of a demo run: the loopback Hub, a Prefect home of its own, nothing sent out."""
    return {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_HOME": str((ROOT / "prefect").absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "DO_NOT_TRACK": "1",
    }


def main(arguments: list[str]) -> int:
    """Build, serve, run; `arguments` go on to the flow (`--set section.field=value`)."""
    repositories = ROOT / "repositories"
    subprocess.run([sys.executable, "-m", "gradelora.sandbox.tiny_gpt_oss", str(repositories / REPO_ID)], check=True)
    with LoopbackHub(repositories) as hub:
        flow = [sys.executable, "-m", "flows.finetune", "--config", "deployments/demo.yaml", *arguments]
        return subprocess.run(flow, env=environment(hub.url), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
