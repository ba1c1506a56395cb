"""Which engine brings the large files, and why."""

import importlib.util
import os
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


class Download:
    """The large files of one commit that are missing from the cache."""

    def __init__(
        self, client: HubClient, cache: RepoCache, commit: str, runtime: Runtime, missing: Sequence[RemoteFile]
    ) -> None:
        self._cache, self._runtime = cache, runtime
        large = {f.sha256: f for f in missing if f.sha256 is not None and f.size > 0}
        self._parts = [Part(cache, f) for f in large.values()]
        self._source = Source(client, cache.repo_id, commit, runtime.fetch_stall_s)
        self._engine: RangeEngine | None = None

    def done_bytes(self) -> int:
        """Bytes on the disk of files that are not whole yet."""
        return sum(p.done_bytes + transfer.written_bytes(p) for p in self._parts if not p.blob.exists())

    def connections(self) -> int:
        """Those that receive bytes now: of hf_transfer as many as it may open; of the stock client unknown, so 0."""
        if self._engine is not None:
            return self._engine.busy
        written = any(transfer.written_bytes(p) for p in self._parts)
        return self._runtime.fetch_connections if written else 0

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
            self._run(verifier, with_transfer=self._chosen() == "hf_transfer")
        except OSError as error:
            raise self._source.named(error, self._parts[0]) from error
        except HubUnavailable as error:
            if self._runtime.fetch_engine != "auto" or not isinstance(error.__cause__, RangesIgnored):
                raise
            print(f"fetch: engine stock: the host ignores Range; {self._stock()}", flush=True)
        finally:
            for part in self._parts:
                part.close()

    def _run(self, verifier: Verifier, *, with_transfer: bool) -> None:
        if with_transfer:
            missing = sum(p.file.size - self._cache.allocated_bytes(p.file) for p in self._parts)
            transfer.ensure_room(self._cache.parts, missing)
        for part in self._parts:
            transfer.adopt(part)
            if with_transfer and not part.path.exists():
                transfer.transfer(part, self._source, self._runtime.fetch_connections, self._runtime.fetch_stall_s)
                transfer.adopt(part)
            part.open()
            if part.done_bytes:
                print(f"fetch: {part.file.name}: {spell_bytes(part.done_bytes)} are there already", flush=True)
            if with_transfer:
                self._fill([part], verifier)
        self._fill(self._parts, verifier)

    def _fill(self, parts: Sequence[Part], verifier: Verifier) -> None:
        runtime = self._runtime
        self._engine = RangeEngine(
            self._source, runtime.fetch_connections, runtime.hub_retries, lambda part: verifier.trust(part.file)
        )
        self._engine.fill([p for p in parts if not p.blob.exists()])
        self._engine = None

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
