"""A webhook on loopback, and the notification block that sends to it."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conftest import ROOT, PrefectServer

NAME = "custom-webhook/graders"
BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
text = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="graders", url=sys.argv[1], json_data=text).save("graders", overwrite=True)
"""


class Webhook:
    """What it was sent."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []

    def told(self, subject: str) -> list[str]:
        """The bodies of the messages under this subject, in their order."""
        return [each["body"] for each in self.received if each["subject"] == f"gradelora: {subject}"]


@contextmanager
def webhook(server: PrefectServer) -> Iterator[Webhook]:
    """Listening, and known to the server as the block NAME."""
    hook = Webhook()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    block = [sys.executable, "-c", BLOCK, f"http://127.0.0.1:{listening.server_port}/"]
    try:
        subprocess.run(block, env=server.env, cwd=ROOT, check=True)
        yield hook
    finally:
        listening.shutdown()
