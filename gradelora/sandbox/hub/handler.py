"""HTTP/1.1 by the standard library: reading bodies, sending JSON and files, ranges, faults, the log."""

# ruff: noqa: N815 - http.server names its methods do_GET and so on.
import http
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from gradelora.sandbox.hub.faults import CHUNK_BYTES, CutConnection, Fault, Place, Reply
from gradelora.sandbox.hub.repository import Blob

if TYPE_CHECKING:
    from gradelora.sandbox.hub.server import LoopbackHub

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Request:
    """One request; `status` 0: cut off unanswered, `bytes_sent`: of the body, `connection`: number of the TCP one."""

    server: Literal["hub", "cdn"]
    method: str
    path: str
    range: str | None
    status: int
    bytes_sent: int
    authorized: bool
    connection: int


class Handler(BaseHTTPRequestHandler):
    """What the Hub and the CDN have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    side: Literal["hub", "cdn"]

    @property
    def hub(self) -> "LoopbackHub":
        """The Hub that this connection belongs to."""
        return self.server.hub  # type: ignore[attr-defined]

    @property
    def route(self) -> list[str]:
        """The parts of the path, unquoted one by one: a branch may be spelled with %2F."""
        return [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]

    @property
    def query(self) -> dict[str, str]:
        """The query's first values."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def read_body(self) -> bytes:
        """The request's body, sent with a length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def read_upload(self) -> bytes | None:
        """A large file's body as the faults at `upload` let it through; None where they have answered already."""
        size = int(self.headers["Content-Length"])
        reply = Reply(200, {}, 0, size, size)
        hit = [f for f in self.hub.faults if f.strikes("upload", self.path, reply)]
        for fault in hit:
            fault.effect.head(reply)
        if reply.status != 200:
            self.close_connection = True
            self._log(reply.status)
            self.wfile.write(self._head(reply, 0))
            return None
        chunks: Iterable[bytes] = (self.rfile.read(min(CHUNK_BYTES, size - at)) for at in range(0, size, CHUNK_BYTES))
        for fault in hit:
            chunks = fault.effect.body(chunks, reply)
        try:
            return b"".join(chunks)
        except CutConnection:
            self.close_connection = True
            self._log(0)
            return None

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """One JSON document."""
        body = json.dumps(value).encode()
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        self._reply("api", Reply(status, all_headers, 0, len(body), len(body)), lambda start, stop: iter([body]))

    def send_error_code(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        """An error as the Hub spells it: X-Error-Code is what clients go by."""
        named = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self.send_json({"error": message}, status, named)

    def send_redirect(self, location: str, headers: dict[str, str]) -> None:
        """302 without a body."""
        place: Place = "head" if self.command == "HEAD" else "resolve"
        self._reply(place, Reply(302, {**headers, "Location": location}, 0, 0, 0), lambda start, stop: iter(()))

    def send_blob(self, place: Place, blob: Blob, path: Path, headers: dict[str, str]) -> None:
        """A file or the range of it that was asked for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        reply = Reply(200, headers, 0, blob.size, blob.size)
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        if asked and asked.group(0) != "bytes=-":
            first, last = asked.groups()
            reply.start = int(first) if first else max(0, blob.size - int(last))
            reply.stop = min(int(last) + 1, blob.size) if first and last else blob.size
            reply.status = 206
            headers["Content-Range"] = f"bytes {reply.start}-{reply.stop - 1}/{blob.size}"
            if reply.start >= reply.stop:
                reply.status, reply.start, reply.stop = 416, 0, 0
                headers["Content-Range"] = f"bytes */{blob.size}"
        self._reply(place, reply, lambda start, stop: _read(path, start, stop))

    def _reply(self, place: Place, reply: Reply, read: Any) -> None:
        """Send `reply` as the faults leave it, and log it."""
        hit: list[Fault] = [f for f in self.hub.faults if f.strikes(place, self.path, reply)]
        for fault in hit:
            fault.effect.head(reply)
        length = reply.stop - reply.start
        entry = self._log(reply.status)
        try:
            self.wfile.write(self._head(reply, length))
            if self.command != "HEAD" and length > 0:
                chunks: Iterable[bytes] = read(reply.start, reply.stop)
                for fault in hit:
                    chunks = fault.effect.body(chunks, reply)
                for chunk in chunks:
                    # Counted first: who has received the last byte may look at the log at once.
                    entry.bytes_sent += len(chunk)
                    self.wfile.write(chunk)
        except CutConnection:
            self.close_connection = True

    def _head(self, reply: Reply, length: int) -> bytes:
        """Status line and headers in one piece: one packet."""
        lines = [f"HTTP/1.1 {reply.status} {http.HTTPStatus(reply.status).phrase}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _log(self, status: int) -> Request:
        """The log's new entry."""
        entry = Request(
            server=self.side,
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            status=status,
            bytes_sent=0,
            authorized=self.headers.get("Authorization") is not None,
            connection=self.server.connection_of(self.connection),  # type: ignore[attr-defined]
        )
        self.hub.requests.append(entry)
        return entry

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: the log is `hub.requests`."""


class CdnHandler(Handler):
    """Large files by signed link; it has never heard of tokens."""

    side = "cdn"

    def do_GET(self) -> None:
        """`/cdn/<sha256>?expires=...&signature=...`."""
        match self.route:
            case ["cdn", sha256] if self._valid(sha256):
                path = self.hub.repositories.object(sha256)
                blob = Blob(sha256, path.stat().st_size, sha256, "", lfs=True)
                self.send_blob("cdn", blob, path, {"ETag": f'"{sha256}"'})
            case _:
                self.send_error_code(403, "AccessDenied", "This link is unknown here or has expired.")

    do_HEAD = do_GET

    def _valid(self, sha256: str) -> bool:
        query = self.query
        return self.hub.valid_link(sha256, query.get("expires", "0"), query.get("signature", ""))


def _read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes [start, stop) of a file in chunks."""
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(CHUNK_BYTES, stop - start))):
            yield chunk
            start += len(chunk)
