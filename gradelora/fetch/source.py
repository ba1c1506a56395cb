"""One range of one file over HTTP, and every way in which a server answers something else."""

import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfFileMetadata, get_hf_file_metadata, get_session, hf_hub_url

from gradelora.errors import GatedRepo, HubUnavailable, Transient
from gradelora.fetch.part import BLOCK_BYTES, Part, Stopped
from gradelora.hub import HubClient, failures

# A connection slower than this for a whole stall time is given up for a new one.
SLOWEST_BYTES_PER_S = 10_000


class WrongAnswer(Transient):
    """A successful status with other bytes than asked for."""


class RangesIgnored(WrongAnswer):
    """200 with the whole file where a part of it was asked for."""


class LinkRefused(Transient):
    """The CDN refuses a link, most likely because it has expired."""


@dataclass(frozen=True)
class Link:
    """Where a file's bytes come from; on the Hub's own host with the token, elsewhere without."""

    url: str
    headers: dict[str, str]


class Source:
    """The files of one commit at the Hub and its CDN.  Safe for threads."""

    def __init__(self, client: HubClient, repo_id: str, commit: str, stall_s: float) -> None:
        self._client, self._repo_id, self._commit, self._stall_s = client, repo_id, commit, stall_s
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()

    def what(self, part: Part) -> str:
        """How errors name the file."""
        return f"{self._repo_id} file {part.file.name}"

    def link(self, part: Part) -> Link:
        """The file's signed link, asked for once and shared by its connections."""
        with self._lock:
            if part.sha256 not in self._links:
                self._links[part.sha256] = self._resolve(part)
            return self._links[part.sha256]

    def offers_xet(self, part: Part) -> bool:
        """Whether the host stores the file in Xet, too.  Raises as HubClient.call."""
        return self._client.call(self.what(part), lambda: self._metadata(part).xet_file_data is not None)

    def _metadata(self, part: Part) -> HfFileMetadata:
        url = hf_hub_url(self._repo_id, part.file.name, revision=self._commit, endpoint=self._client.endpoint)
        return get_hf_file_metadata(
            url, token=self._client.token, timeout=self._client.timeout_s, endpoint=self._client.endpoint
        )

    def _expire(self, part: Part, link: Link) -> None:
        """Ask for a fresh link the next time, unless somebody already did."""
        with self._lock:
            if self._links.get(part.sha256) == link:
                del self._links[part.sha256]

    def _resolve(self, part: Part) -> Link:
        url = hf_hub_url(self._repo_id, part.file.name, revision=self._commit, endpoint=self._client.endpoint)
        found = self._metadata(part)
        if found.etag != part.sha256 or found.size not in (None, part.file.size):
            raise WrongAnswer(f"{self.what(part)}: the Hub describes it otherwise than in its listing")
        own_host = httpx2.URL(found.location).netloc == httpx2.URL(url).netloc
        return Link(found.location, self._client.headers(with_token=own_host))

    def receive(self, part: Part, run: range, stopped: Callable[[], bool]) -> None:
        """Fetch a run of blocks, each noted as it is whole.

        Raises the named error of what went wrong, WrongAnswer, or Stopped.
        """
        link = self.link(part)
        start, stop = run.start * BLOCK_BYTES, min(run.stop * BLOCK_BYTES, part.file.size)
        timeout = httpx2.Timeout(self._client.timeout_s, read=self._stall_s)
        headers = {**link.headers, "Range": f"bytes={start}-{stop - 1}"}
        with get_session().stream("GET", link.url, headers=headers, timeout=timeout) as response:
            self._refuse(part, link, response, start)
            self._store(part, run, response, stopped)

    def _refuse(self, part: Part, link: Link, response: httpx2.Response, start: int) -> None:
        """Raise unless the body is the range from `start` of a file of the right size."""
        status = response.status_code
        if status in (401, 403):
            if "authorization" in {name.lower() for name in link.headers}:
                raise GatedRepo(f"{self.what(part)}: access refused ({status}); set HF_TOKEN to one that may read it")
            self._expire(part, link)
            raise LinkRefused(f"{self.what(part)}: the CDN refuses fresh links, too ({status}); check clock and proxy")
        if status == 416:
            raise WrongAnswer(f"{self.what(part)}: the server says that it ends before byte {start}")
        if status == 200:
            length = response.headers.get("Content-Length")
            if start == 0 and length in (None, str(part.file.size)):
                return
            raise RangesIgnored(
                f"{self.what(part)}: the server ignores Range; set runtime.fetch_engine=stock if it stays so"
            )
        if status != 206:
            response.raise_for_status()
            raise HubUnavailable(f"{self.what(part)}: unexpected status {status}")
        place, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if place.partition("-")[0] != str(start) or total not in ("*", str(part.file.size)):
            raise WrongAnswer(f"{self.what(part)}: asked for bytes from {start}, got {place} of {total}")

    def _store(self, part: Part, run: range, response: httpx2.Response, stopped: Callable[[], bool]) -> None:
        """Write the body into the part block by block."""
        index, offset, crc = run.start, run.start * BLOCK_BYTES, 0
        window, received = time.monotonic(), 0
        for data in response.iter_raw():
            if stopped():
                raise Stopped
            view = memoryview(data)
            received += len(view)
            while view and index < run.stop:
                end = index * BLOCK_BYTES + part.block_size(index)
                piece = view[: end - offset]
                part.write(offset, piece)
                crc, offset, view = zlib.crc32(piece, crc), offset + len(piece), view[len(piece) :]
                if offset == end:
                    part.finish(index, crc)
                    index, crc = index + 1, 0
            if index == run.stop:
                return
            if (passed := time.monotonic() - window) > self._stall_s:
                if received / passed < SLOWEST_BYTES_PER_S:
                    raise WrongAnswer(f"{self.what(part)}: {received} bytes in {passed:.0f} s; trying a new connection")
                window, received = time.monotonic(), 0
        raise WrongAnswer(f"{self.what(part)}: the answer ended at byte {offset}, {run.stop - index} blocks early")

    def named(self, error: Exception, part: Part) -> Exception:
        """The named error for one of theirs; others as they are."""
        return failures.named(error, self.what(part), self._client.endpoint) or error
