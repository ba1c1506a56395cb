"""Which engine brings the large files, and why."""

from collections.abc import Sequence

from gradelora.artifacts import RemoteFile
from gradelora.config import Runtime
from gradelora.fetch import transfer
from gradelora.fetch.part import Part
from gradelora.fetch.progress import spell_bytes
from gradelora.fetch.ranges import RangeEngine
from gradelora.fetch.source import Source
from gradelora.fetch.verify import Verifier
from gradelora.hub import HubClient, RepoCache


class Download:
    """The large files of one commit that are missing from the cache."""

    def __init__(
        self, client: HubClient, cache: RepoCache, commit: str, runtime: Runtime, missing: Sequence[RemoteFile]
    ) -> None:
        self._cache, self._runtime = cache, runtime
        large = {f.sha256: f for f in missing if f.sha256 is not None and f.size > 0}
        self._parts = [Part(cache, f) for f in large.values()] if runtime.fetch_engine != "stock" else []
        self._source = Source(client, cache.repo_id, commit, runtime.fetch_stall_s)

    def done_bytes(self) -> int:
        """Bytes on the disk of files that are not whole yet."""
        return sum(p.done_bytes + transfer.written_bytes(p) for p in self._parts if not p.blob.exists())

    def run(self, verifier: Verifier) -> None:
        """Bring them all into blobs/, each verified.  Raises what trying again does not mend."""
        if not self._parts:
            return
        try:
            with_transfer = self._chosen()
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
        finally:
            for part in self._parts:
                part.close()

    def _fill(self, parts: Sequence[Part], verifier: Verifier) -> None:
        runtime = self._runtime
        engine = RangeEngine(
            self._source, runtime.fetch_connections, runtime.hub_retries, lambda part: verifier.trust(part.file)
        )
        engine.fill([p for p in parts if not p.blob.exists()])

    def _chosen(self) -> bool:
        """Whether hf_transfer starts the files; says why."""
        asked, largest = self._runtime.fetch_engine, max(p.file.size for p in self._parts)
        if asked == "http":
            chosen, why = False, "as configured"
        elif not transfer.has_holes(self._cache.parts):
            chosen, why = False, "the cache's file system does not tell data from holes, so hf_transfer could not go on"
        elif asked == "hf_transfer":
            chosen, why = True, "as configured"
        else:
            chosen = largest >= transfer.WORTH_BYTES
            why = f"the largest file has {spell_bytes(largest)}"
        name = "hf_transfer" if chosen else "http"
        print(f"fetch: engine {name} with {self._runtime.fetch_connections} connections: {why}", flush=True)
        return chosen
