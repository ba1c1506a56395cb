"""The two servers of a loopback Hub, the Hub itself and its CDN, and what they log.

The CDN has a port of its own, so that to every client it is another host: a token that reaches
it is a leak.  Links to it are signed and expire.
"""

import contextlib
import hashlib
import hmac
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gradelora.sandbox.hub.faults import Fault
from gradelora.sandbox.hub.handler import CdnHandler, Handler, Request
from gradelora.sandbox.hub.repository import Repositories
from gradelora.sandbox.hub.routes import HubHandler

HOST = "127.0.0.1"


class LoopbackHub:
    """Serves `<root>/<owner>/<name>/` on 127.0.0.1 between `with` and its end.

    `access` closes repositories to all but `token`; with a token set, writing needs it too.
    `uploads="lfs"` speaks the LFS protocol, which a client that has hf_xet does not unless
    HF_HUB_DISABLE_XET=1.  `spoofed` replaces names in listings by others, however evil.
    """

    def __init__(
        self,
        root: Path,
        port: int = 0,
        *,
        token: str | None = None,
        access: Mapping[str, Literal["gated", "private"]] | None = None,
        faults: Iterable[Fault] = (),
        link_lifetime_s: float = 3600,
        uploads: Literal["regular", "lfs"] = "regular",
        spoofed: Mapping[str, str] | None = None,
        page_entries: int = 1000,
    ) -> None:
        self.repositories = Repositories(root)
        self.token = token
        self.access = dict(access or {})
        self.faults = list(faults)
        self.link_lifetime_s = link_lifetime_s
        self.uploads = uploads
        self.spoofed = dict(spoofed or {})
        self.page_entries = page_entries
        self.requests: list[Request] = []
        self._secret = secrets.token_bytes(16)
        self._hub = _Server((HOST, port), HubHandler, self)
        self._cdn = _Server((HOST, 0), CdnHandler, self)

    @property
    def url(self) -> str:
        """The endpoint, for HF_ENDPOINT."""
        return f"http://{HOST}:{self._hub.server_port}"

    @property
    def cdn_url(self) -> str:
        """Where large files come from."""
        return f"http://{HOST}:{self._cdn.server_port}"

    def __enter__(self) -> Self:
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()
            server.hang_up()

    def sent(self, *, server: Literal["hub", "cdn"] | None = None, path: str = "") -> int:
        """Body bytes sent so far to requests whose path contains `path`."""
        return sum(r.bytes_sent for r in self.requests if path in r.path and server in (None, r.server))

    def signed_link(self, sha256: str) -> str:
        """A CDN link to contents, valid for `link_lifetime_s`."""
        expires = f"{time.time() + self.link_lifetime_s:.3f}"
        return f"{self.cdn_url}/cdn/{sha256}?expires={expires}&signature={self._signature(sha256, expires)}"

    def valid_link(self, sha256: str, expires: str, signature: str) -> bool:
        """Whether the link was made here and has not expired."""
        known = hmac.compare_digest(self._signature(sha256, expires), signature)
        return known and time.time() < float(expires)

    def _signature(self, sha256: str, expires: str) -> str:
        return hmac.new(self._secret, f"{sha256}:{expires}".encode(), hashlib.sha256).hexdigest()


class _Server(ThreadingHTTPServer):
    """Knows its Hub, numbers its connections and can end them all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Handler], hub: LoopbackHub) -> None:
        super().__init__(address, handler)
        self.hub = hub
        self._open: dict[int, socket.socket] = {}
        self._count = 0
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Number the connection before its thread starts."""
        with self._lock:
            self._count += 1
            self._open[self._count] = request
        super().process_request(request, client_address)

    def connection_of(self, request: socket.socket) -> int:
        """The number of a connection."""
        with self._lock:
            return next(number for number, known in self._open.items() if known is request)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection when it ends."""
        with self._lock:
            self._open = {n: known for n, known in self._open.items() if known is not request}
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep alive."""
        with self._lock:
            for connection in self._open.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; what else goes wrong is."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
