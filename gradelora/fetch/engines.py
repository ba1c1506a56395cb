"""Which engine brings the large files, and why."""

import importlib.util
import os
import threading
from collections.abc import Sequence
from typing import Literal

from huggingface_hub import constants

from gradelora.artifacts import RemoteFile
from gradelora.config import Runtime
from gradelora.errors import HubUnavailable, MissingTool
from gradelora.fetch import transfer
from gradelora.fetch.part import Part
from gradelora.fetch.progress import spell_bytes
from gradelora.fetch.ranges import RangeEngine
from gradelora.fetch.source import RangesIgnored, Source
from gradelora.fetch.verify import Verifier
from gradelora.hub import HubClient, RepoCache

STOCK = ("stock", "xet")
# Files that are hashed while the next one arrives.
FINISHED_AT_ONCE = 2


class Download:
    """The large files of one commit that are missing from the cache."""

    def __init__(
        self, client: HubClient, cache: RepoCache, commit: str, runtime: Runtime, missing: Sequence[RemoteFile]
    ) -> None:
        self._cache, self._runtime = cache, runtime
        large = {f.sha256: f for f in missing if f.sha256 is not None and f.size > 0}
        self._parts = [Part(cache, f) for f in large.values()]
        self._source = Source(client, cache.repo_id, commit, runtime.fetch_stall_s)
        self._engines: list[RangeEngine] = []
        self._written: dict[str, int] = {}
        self._slots = threading.Semaphore(FINISHED_AT_ONCE)

    def done_bytes(self) -> int:
        """Bytes on the disk of files that are not whole yet."""
        missing = [p for p in self._parts if not p.blob.exists()]
        return sum(max(p.done_bytes, transfer.written_bytes(p), self._written.get(p.sha256, 0)) for p in missing)

    def connections(self) -> int:
        """Those that receive bytes now: of hf_transfer as many as it may open; of the stock client unknown, so 0."""
        written = any(transfer.written_bytes(p) for p in self._parts if p.sha256 not in self._written)
        return sum(e.busy for e in self._engines) + (self._runtime.fetch_connections if written else 0)

    def run(self, verifier: Verifier) -> None:
        """Bring them into blobs/, each verified, but for what is left to the stock client.

        Raises what trying again does not mend.
        """
        if not self._parts:
            return
        if self._runtime.fetch_engine in STOCK:
            print(f"fetch: engine {self._runtime.fetch_engine}: {self._stock()}", flush=True)
            return
        try:
            (self._transfer if self._chosen() == "hf_transfer" else self._fetch)(verifier)
        except OSError as error:
            raise self._source.named(error, self._parts[0]) from error
        except HubUnavailable as error:
            if self._runtime.fetch_engine != "auto" or not isinstance(error.__cause__, RangesIgnored):
                raise
            for part in self._parts:
                part.discard()
            print(f"fetch: engine stock: the host ignores Range; {self._stock()}", flush=True)
        finally:
            for part in self._parts:
                part.close()

    def _fetch(self, verifier: Verifier) -> None:
        """All parts at once, by several connections."""
        for part in self._parts:
            transfer.adopt(part)
            self._open(part)
        self._fill(self._parts, verifier)

    def _transfer(self, verifier: Verifier) -> None:
        """One file after the other by hf_transfer; while the next arrives, the last is mended, hashed and published."""
        missing = sum(p.file.size - self._cache.allocated_bytes(p.file) for p in self._parts)
        transfer.ensure_room(self._cache.parts, missing)
        errors: list[Exception] = []
        finishers = []
        for part in self._parts:
            transfer.adopt(part)
            if not part.path.exists():
                transfer.transfer(part, self._source, self._runtime.fetch_connections, self._runtime.fetch_stall_s)
                self._written[part.sha256] = transfer.written_bytes(part)
            # Daemons: hashing gigabytes must not hold the process back when it is told to end.
            finishers.append(threading.Thread(target=self._finish, args=(part, verifier, errors), daemon=True))
            finishers[-1].start()
            if errors:
                break
        for thread in finishers:
            # Short waits: Ctrl-C is not heard in a long one.
            while thread.is_alive() and not errors:
                thread.join(0.1)
        if errors:
            raise errors[0]

    def _finish(self, part: Part, verifier: Verifier, errors: list[Exception]) -> None:
        """Make a published file of what hf_transfer wrote; its own connections bring what is missing."""
        try:
            with self._slots:
                transfer.adopt(part)
                self._open(part)
                self._fill([part], verifier)
        except Exception as error:
            errors.append(error)

    def _open(self, part: Part) -> None:
        part.open()
        if part.done_bytes and part.sha256 not in self._written:
            print(f"fetch: {part.file.name}: {spell_bytes(part.done_bytes)} are there already", flush=True)

    def _fill(self, parts: Sequence[Part], verifier: Verifier) -> None:
        runtime = self._runtime
        engine = RangeEngine(
            self._source, runtime.fetch_connections, runtime.hub_retries, lambda part: verifier.trust(part.file)
        )
        self._engines.append(engine)
        engine.fill([p for p in parts if not p.blob.exists()])

    def _chosen(self) -> Literal["hf_transfer", "http"]:
        """Who starts the files; says why."""
        asked, largest = self._runtime.fetch_engine, max(p.file.size for p in self._parts)
        if asked == "http":
            chosen, why = False, "as configured"
        elif not transfer.has_holes(self._cache.parts):
            chosen, why = False, "the cache's file system does not tell data from holes, so hf_transfer could not go on"
        elif asked == "hf_transfer":
            chosen, why = True, "as configured"
        elif transfer_is_asked_for():
            chosen, why = True, "HF_HUB_ENABLE_HF_TRANSFER is set"
        else:
            chosen = largest >= transfer.WORTH_BYTES
            why = f"the largest file has {spell_bytes(largest)}"
        name: Literal["hf_transfer", "http"] = "hf_transfer" if chosen else "http"
        print(f"fetch: engine {name} with {self._runtime.fetch_connections} connections: {why}", flush=True)
        return name

    def _stock(self) -> str:
        """How huggingface_hub's own client will bring the files, in words.

        Raises MissingTool where Xet is asked for and cannot be used.
        """
        can_xet = importlib.util.find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
        if self._runtime.fetch_engine == "xet" and not can_xet:
            raise MissingTool(
                "runtime.fetch_engine=xet: hf_xet is not installed or HF_HUB_DISABLE_XET is set;"
                " install it and unset that, or set runtime.fetch_engine=auto"
            )
        if can_xet and self._source.offers_xet(self._parts[0]):
            return "huggingface_hub's own client by Xet"
        why = "the host offers no Xet" if can_xet else "without hf_xet"
        return f"huggingface_hub's own client, one connection a file ({why})"


def transfer_is_asked_for() -> bool:
    """Whether the environment asks huggingface_hub for hf_transfer, in its own spelling of yes."""
    return os.environ.get("HF_HUB_ENABLE_HF_TRANSFER", "").upper() in ("1", "ON", "YES", "TRUE")
