"""One address for several API servers: a connection goes to the first that accepts it.

What HAProxy, nginx or a Kubernetes Service does in earnest; here it needs no further package.
"""

import contextlib
import socket
import threading
import time

PATIENCE_S = 60.0


class Balancer:
    """Listens on a loopback port of its own between `start` and the end of the process."""

    def __init__(self, backends: list[int]) -> None:
        self._backends = backends
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._connected() as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()

    def _connected(self) -> socket.socket:
        until = time.monotonic() + PATIENCE_S
        while True:
            for port in self._backends:
                with contextlib.suppress(OSError):
                    return socket.create_connection(("127.0.0.1", port), timeout=2)
            if time.monotonic() > until:
                raise OSError("no API server accepts connections")
            time.sleep(0.2)


def _copy(source: socket.socket, target: socket.socket) -> None:
    source.settimeout(None)
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    # Both ways end together: a server that was killed must be seen by its client at once.
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
