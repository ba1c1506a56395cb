"""`python -m gradelora.sandbox.hub ROOT --port N`: serve until SIGTERM or Ctrl-C."""

import argparse
import signal
import threading
from pathlib import Path

from gradelora.sandbox.hub.server import LoopbackHub


def main() -> None:
    """Serve the repositories below ROOT; the first line printed is the endpoint."""
    parser = argparse.ArgumentParser(prog="python -m gradelora.sandbox.hub", description=__doc__)
    parser.add_argument("root", type=Path, help="holds <owner>/<name>/ folders; <name>@<branch>/ is another revision")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    arguments = parser.parse_args()
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    with LoopbackHub(arguments.root, port=arguments.port) as hub:
        print(hub.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
