"""What can go wrong between a Hub and its client: one small class an effect.

A `Fault` says on which requests and how often; its effect says what happens.  An effect that
changes the body sees it as an iterator of chunks, so a new one is a class with one method.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Place = Literal["api", "head", "resolve", "cdn", "upload"]
CHUNK_BYTES = 64 * 1024


@dataclass
class Reply:
    """An answer before it is sent: body bytes [start, stop) of a file of `size` bytes; of an upload what comes in."""

    status: int
    headers: dict[str, str]
    start: int
    stop: int
    size: int


class CutConnection(Exception):
    """The server closes the connection without another word."""


class Effect:
    """Nothing goes wrong; subclasses override what they need."""

    def applies(self, reply: Reply) -> bool:  # noqa: ARG002
        """Whether this answer can show the effect at all."""
        return True

    def head(self, reply: Reply) -> None:
        """Change status, headers or range before they are sent."""

    def body(self, chunks: Iterable[bytes], reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Change the bytes, their pace or their end."""
        yield from chunks


@dataclass(frozen=True)
class Status(Effect):
    """Another status instead of the answer, e.g. 503, or 429 with Retry-After in seconds."""

    code: int
    retry_after_s: int | None = None

    def head(self, reply: Reply) -> None:
        """Drop the body: the error's own is empty."""
        reply.status, reply.start, reply.stop = self.code, 0, 0
        reply.headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


@dataclass(frozen=True)
class Cut(Effect):
    """The connection ends after so many bytes of the body."""

    after_bytes: int

    def body(self, chunks: Iterable[bytes], reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Pass `after_bytes`, then cut."""
        left = self.after_bytes
        for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise CutConnection


@dataclass(frozen=True)
class Stall(Effect):
    """After so many bytes nothing comes for a while, the connection stays open."""

    after_bytes: int
    seconds: float

    def body(self, chunks: Iterable[bytes], reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Pass `after_bytes`, wait, pass the rest."""
        left, waited = self.after_bytes, False
        for chunk in chunks:
            if not waited and left <= len(chunk):
                yield chunk[:left]
                time.sleep(self.seconds)
                yield chunk[left:]
                waited = True
            else:
                yield chunk
            left -= len(chunk)


@dataclass(frozen=True)
class Throttle(Effect):
    """At most so many bytes a second on each connection."""

    bytes_per_s: float

    def body(self, chunks: Iterable[bytes], reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Wait until each chunk is due."""
        due = time.monotonic()
        for chunk in chunks:
            time.sleep(max(0.0, due - time.monotonic()))
            yield chunk
            due += len(chunk) / self.bytes_per_s


@dataclass(frozen=True)
class Flip(Effect):
    """One byte of the file arrives inverted."""

    at: int

    def applies(self, reply: Reply) -> bool:
        """Only where the byte is part of the answer."""
        return reply.start <= self.at < reply.stop

    def body(self, chunks: Iterable[bytes], reply: Reply) -> Iterator[bytes]:
        """Invert the byte at offset `at` of the file."""
        offset = reply.start
        for chunk in chunks:
            index = self.at - offset
            if 0 <= index < len(chunk):
                chunk = chunk[:index] + bytes([chunk[index] ^ 0xFF]) + chunk[index + 1 :]
            offset += len(chunk)
            yield chunk


@dataclass(frozen=True)
class Empty(Effect):
    """A successful answer whose body has no bytes."""

    def head(self, reply: Reply) -> None:
        """Announce nothing, send nothing."""
        reply.stop = reply.start


@dataclass(frozen=True)
class IgnoreRange(Effect):
    """200 with the whole file where a Range was asked for."""

    def applies(self, reply: Reply) -> bool:
        """Only where there was a Range to ignore."""
        return reply.status == 206

    def head(self, reply: Reply) -> None:
        """Answer as if no Range had come."""
        reply.status, reply.start, reply.stop = 200, 0, reply.size
        reply.headers.pop("Content-Range", None)


@dataclass(frozen=True)
class Short(Effect):
    """A well-formed 206 that holds fewer bytes than asked for."""

    missing_bytes: int

    def applies(self, reply: Reply) -> bool:
        """Only where something is left to send."""
        return reply.status == 206 and reply.stop - reply.start > self.missing_bytes

    def head(self, reply: Reply) -> None:
        """Shorten range and length alike."""
        reply.stop -= self.missing_bytes
        reply.headers["Content-Range"] = f"bytes {reply.start}-{reply.stop - 1}/{reply.size}"


@dataclass(frozen=True)
class WrongContentRange(Effect):
    """A 206 that claims another place of the file than the bytes come from."""

    shift: int

    def applies(self, reply: Reply) -> bool:
        """Only where there is a Content-Range."""
        return reply.status == 206

    def head(self, reply: Reply) -> None:
        """Shift what the header says."""
        first, last = reply.start + self.shift, reply.stop - 1 + self.shift
        reply.headers["Content-Range"] = f"bytes {first}-{last}/{reply.size}"


@dataclass
class Fault:
    """An effect on the requests at `on` whose path contains `path`: `times` of them after `skip`."""

    effect: Effect
    on: Place
    path: str = ""
    times: int | None = 1
    skip: int = 0
    fired: int = 0
    _seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def strikes(self, place: Place, path: str, reply: Reply) -> bool:
        """Whether this request is hit; counts it."""
        if place != self.on or self.path not in path or not self.effect.applies(reply):
            return False
        with self._lock:
            self._seen += 1
            if self._seen <= self.skip or (self.times is not None and self.fired >= self.times):
                return False
            self.fired += 1
            return True
