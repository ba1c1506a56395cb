"""What the Hub cache holds: commits of models, parts of downloads, and what was left behind."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gradelora.cache.entries import Entry, locked, size_under, spell_time
from gradelora.cache.sealed import SHOWN_KEY, Holdings
from gradelora.hub import RepoCache

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo


def entries(cache: Path, holdings: tuple[Holdings, ...]) -> Iterator[Entry]:
    """Every commit in the cache, then parts and orphans by repository."""
    from huggingface_hub import scan_cache_dir

    if not cache.is_dir():
        return
    scanned = scan_cache_dir(cache)
    for repo in sorted(scanned.repos, key=lambda r: (r.repo_type, r.repo_id)):
        for revision in sorted(repo.revisions, key=lambda r: r.commit_hash):
            yield _revision(repo, revision, RepoCache(cache, repo.repo_id), holdings)
    for folder in sorted(cache.glob("models--*")):
        repo_cache = RepoCache(cache, folder.name.removeprefix("models--").replace("--", "/", 1))
        used = {f.blob_path for r in scanned.repos if r.repo_path == folder for v in r.revisions for f in v.files}
        yield from _unfinished(repo_cache, used)


def _revision(
    repo: "CachedRepoInfo", revision: "CachedRevisionInfo", cache: RepoCache, holdings: tuple[Holdings, ...]
) -> Entry:
    needed: dict[str, None] = {}
    fixed = fetching = cache.busy
    if fetching:
        needed["a download in progress"] = None
    if not holdings:
        needed["unknown: no store is given"] = None
    for held in holdings:
        users, held_fast = held.users_of_snapshot(repo.repo_id, revision.commit_hash)
        needed.update(dict.fromkeys(users))
        fixed = fixed or held_fast
    kind = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
    return Entry(
        name=f"hub/{kind}{repo.repo_id}@{revision.commit_hash[:SHOWN_KEY]}",
        kind="model",
        path=revision.snapshot_path,
        size_bytes=revision.size_on_disk,
        last_used=spell_time(repo.last_accessed),
        needed_by=tuple(needed),
        locked=fixed,
        ours=repo.repo_type == "model" and cache.notes.is_dir(),
    )


def _unfinished(cache: RepoCache, used: set[Path]) -> Iterator[Entry]:
    """Parts with which a fetch goes on, and those of stock downloads, with which nothing does."""
    fetching = cache.busy
    going_on = size_under(cache.parts) + sum(p.stat().st_size for p in _loose(cache, used))
    if going_on:
        yield Entry(
            name=f"hub/{cache.repo_id}/parts",
            kind="parts",
            path=cache.parts,
            size_bytes=going_on,
            last_used=_newest([*cache.parts.glob("*"), *_loose(cache, used)]),
            needed_by=("a download in progress" if fetching else "the next fetch, which goes on from it",),
            locked=fetching,
        )
    orphans = sorted(cache.blobs.glob("*.incomplete"))
    if orphans:
        yield Entry(
            name=f"hub/{cache.repo_id}/orphans",
            kind="orphans",
            path=cache.blobs,
            size_bytes=sum(p.stat().st_blocks * 512 for p in orphans),
            last_used=_newest(orphans),
            needed_by=("a download in progress",) if fetching else (),
            locked=fetching,
        )


def _loose(cache: RepoCache, used: set[Path]) -> list[Path]:
    """Whole blobs that no snapshot shows yet: a download ended between rename and link."""
    blobs = sorted(p for p in cache.blobs.glob("*") if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", p.name))
    return [p for p in blobs if p not in used and p.is_file()]


def _newest(paths: list[Path]) -> str:
    return spell_time(max((p.stat().st_mtime for p in paths), default=0))


def remove(entry: Entry, cache: Path) -> None:
    """Remove a commit with the blobs that no other one shows, or parts, or orphans."""
    from huggingface_hub import scan_cache_dir

    folder = next(p for p in (entry.path, *entry.path.parents) if p.parent == cache)
    repo_cache = RepoCache(cache, folder.name.partition("--")[2].replace("--", "/", 1))
    with locked(repo_cache.lease, entry.name) if repo_cache.notes.is_dir() else contextlib.nullcontext():
        match entry.kind:
            case "model":
                scan_cache_dir(cache).delete_revisions(entry.path.name).execute()
                # Refs of ours to a commit that is gone would lead offline runs astray.
                for note in (repo_cache.notes / "refs").glob("*"):
                    if note.read_text() == entry.path.name:
                        note.unlink()
            case "parts":
                scanned = scan_cache_dir(cache).repos
                used = {f.blob_path for r in scanned if r.repo_path == folder for v in r.revisions for f in v.files}
                for blob in _loose(repo_cache, used):
                    blob.unlink()
                shutil.rmtree(repo_cache.parts, ignore_errors=True)
            case _:
                for orphan in entry.path.glob("*.incomplete"):
                    orphan.unlink(missing_ok=True)
