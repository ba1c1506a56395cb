"""One fetch from beginning to end: what is there, what is missing, get it, link it, verify it."""

import contextlib
import glob
import shutil
from collections.abc import Sequence

from huggingface_hub import snapshot_download
from huggingface_hub.file_download import are_symlinks_supported
from tqdm import tqdm

from gradelora.artifacts import BaseModel, ModelSnapshot, RemoteFile
from gradelora.config import FetchConfig, Runtime
from gradelora.fetch.engines import Download, transfer_is_asked_for
from gradelora.fetch.lease import lease
from gradelora.fetch.progress import Progress, spell_bytes
from gradelora.fetch.verify import Verifier
from gradelora.hub import HubClient, RepoCache
from gradelora.hub.names import is_small_file, refuse_escapes

# Files at once: the stock client opens one connection a file.
FILES_AT_ONCE = 8


def bring(config: FetchConfig, base: BaseModel, runtime: Runtime) -> ModelSnapshot:
    """See `gradelora.fetch.fetch`."""
    client = HubClient(runtime)
    cache = client.repo_cache(base.repo_id)
    wanted = [f for f in base.remote_files if config.part == "everything" or is_small_file(f.name)]
    refuse_escapes(base.repo_id, (f.name for f in wanted))
    if client.offline:
        return _finish(config, base, client, cache, Verifier(cache, base.commit), wanted)
    with lease(cache):
        return _bring(config, base, client, cache, wanted, runtime)


def _bring(
    config: FetchConfig,
    base: BaseModel,
    client: HubClient,
    cache: RepoCache,
    wanted: Sequence[RemoteFile],
    runtime: Runtime,
) -> ModelSnapshot:
    """Get what is missing, then finish."""
    _report_orphans(cache, base)
    if transfer_is_asked_for():
        print(
            "fetch: HF_HUB_ENABLE_HF_TRANSFER is set; huggingface_hub ignores it since 1.0,"
            f" here runtime.fetch_engine={runtime.fetch_engine} decides (auto takes it as hf_transfer)",
            flush=True,
        )
    verifier = Verifier(cache, base.commit)
    verifier.drop_truncated(wanted)
    missing = [f for f in wanted if not cache.holds(base.commit, f)]
    if missing:
        cache.refuse_read_only(sum(f.size for f in missing))
        cache.drop_leftovers(f for f in wanted if f not in missing)
    total = sum(f.size for f in wanted)
    print(
        f"fetch: {base.repo_id} at {base.commit[:12]}: {len(wanted)} files, {spell_bytes(total)};"
        f" {spell_bytes(sum(f.size for f in missing))} missing; cache {cache.folder}",
        flush=True,
    )
    download = Download(client, cache, base.commit, runtime, missing)
    with Progress(cache, base.commit, wanted, download.done_bytes, download.connections):
        download.run(verifier)
        if missing and not are_symlinks_supported(client.cache):
            _move_in(cache, base.commit, missing)
        return _finish(config, base, client, cache, verifier, wanted)


def _finish(
    config: FetchConfig,
    base: BaseModel,
    client: HubClient,
    cache: RepoCache,
    verifier: Verifier,
    wanted: Sequence[RemoteFile],
) -> ModelSnapshot:
    """Link and verify."""
    _link(client, base, wanted)
    entries = verifier.verify(wanted)
    if config.part == "everything":
        # Read-only caches serve well enough by commit.
        with contextlib.suppress(OSError):
            cache.publish_refs(base.commit)
    return ModelSnapshot(
        path=cache.snapshot(base.commit), files=tuple(entries), repo_id=base.repo_id, commit=base.commit
    )


def _link(client: HubClient, base: BaseModel, wanted: Sequence[RemoteFile]) -> None:
    """Stock snapshot_download: it fetches what is missing and links what is there."""

    def download() -> None:
        snapshot_download(
            base.repo_id,
            revision=base.commit,
            cache_dir=client.cache,
            endpoint=client.endpoint,
            token=client.token,
            etag_timeout=client.timeout_s,
            # Names, not patterns: a bracket in one must not match another.
            allow_patterns=[glob.escape(f.name) for f in wanted],
            max_workers=FILES_AT_ONCE,
            tqdm_class=_Silent,
        )

    client.call(f"{base.repo_id} at {base.commit[:12]}", download)


def _move_in(cache: RepoCache, commit: str, files: Sequence[RemoteFile]) -> None:
    """Without symbolic links the files themselves lie in the snapshot: the stock client would copy them."""
    last = {cache.blob(file): file.name for file in files}
    for file in files:
        blob, place = cache.blob(file), cache.snapshot(commit) / file.name
        if blob.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.name == last[blob]:
                blob.replace(place)
            else:
                shutil.copy2(blob, place)


def _report_orphans(cache: RepoCache, base: BaseModel) -> None:
    """Say what earlier downloads left behind that nothing will go on with."""
    orphans = list(cache.orphans(base.remote_files))
    if orphans:
        size = spell_bytes(sum(o.size for o in orphans))
        print(
            f"fetch: {len(orphans)} orphaned parts of earlier downloads hold {size}; to remove them:"
            f" gradelora fetch --repo {base.repo_id} --revision {base.commit} --cache-dir '{cache.cache}' --yes",
            flush=True,
        )


class _Silent(tqdm):
    """No bars: a log is read, not watched."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.pop("name", None)
        super().__init__(*args, **{**kwargs, "disable": True})
