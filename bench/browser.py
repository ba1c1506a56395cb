"""A headless Chromium for `bench/look_at_ui.py`, led by the DevTools protocol over a websocket.

The pages are drawn by scripts, so what is photographed is waited for: a text on the page, then a
moment for pictures.  What a page's scripts complain of is kept.
"""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from bench.cluster import MissingProgram, free_port, wait_until

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    # The run's graph is drawn by WebGL, in software where there is no GPU.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
SIZE = {"width": 1440, "height": 1500}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", **SIZE, deviceScaleFactor=1, mobile=False)

    def open(self, url: str, text: str, seconds: float = 90) -> None:
        """Go there and wait until the page shows `text`.  Raises TimeoutError."""
        self._call("Page.navigate", url=url)
        wait_until(lambda: text in self.text(), f"{text!r} on {url}", seconds)
        self.rest()

    def text(self) -> str:
        """What a reader sees as text."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def value(self, script: str) -> Any:
        """What an expression of the page's comes to."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def click(self, text: str) -> None:
        """The innermost element with exactly this text."""
        found = f"[...document.querySelectorAll('*')].filter(e => e.textContent.trim() === {json.dumps(text)}).pop()"
        self.value(f"{found}?.click()")
        self.rest()

    def rest(self, seconds: float = 3) -> None:
        """Pictures come after the text."""
        time.sleep(seconds)

    def photograph(self, path: Path) -> None:
        """What the window shows."""
        picture = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=120))
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return told["result"]
            self._note(told)

    def _note(self, told: Any) -> None:
        if told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(told["params"]["exceptionDetails"].get("text", "a script failed"))
        elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            entry = told["params"]["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}".strip())


@contextmanager
def a_page(folder: Path) -> Iterator[Page]:
    """A browser with nothing of an earlier one, its profile in `folder`.  Raises MissingProgram."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise MissingProgram("apt-get install -y chromium")
    port = free_port()
    argv = [program, *FLAGS, f"--user-data-dir={folder}", f"--remote-debugging-port={port}", "about:blank"]
    with (folder.parent / "browser.log").open("w") as log:
        browser = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}/json/list"
        wait_until(lambda: any(tab["type"] == "page" for tab in httpx.get(address).json()), "Chromium", 60)
        tab = next(tab for tab in httpx.get(address).json() if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=2**28) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.wait(30)
