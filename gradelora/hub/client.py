"""A thin, retrying client over huggingface_hub: which commit, which files, a few bytes of one.

The token is read from HF_TOKEN alone and goes to the Hub's own host alone: the HTTP client
drops it where a redirect leaves that host.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status

from gradelora import __version__
from gradelora.artifacts import RemoteFile
from gradelora.config import Runtime
from gradelora.errors import HubUnavailable, Transient, UnsupportedModel
from gradelora.hub import failures
from gradelora.hub.cache import RepoCache

T = TypeVar("T")
LONGEST_PAUSE_S = 30.0
# A server that asks for more than this is as good as away: say so instead of sleeping.
LONGEST_RETRY_AFTER_S = 300.0


@dataclass(frozen=True)
class Listing:
    """All files of one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


class HubClient:
    """The Hub at one endpoint with one cache, as `runtime` and the environment say."""

    def __init__(self, runtime: Runtime) -> None:
        self.endpoint = (runtime.hub_endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.cache = Path(runtime.hub_cache or constants.HF_HUB_CACHE).expanduser().absolute()
        self.retries = runtime.hub_retries
        self.timeout_s = runtime.hub_timeout_s

    @property
    def offline(self) -> bool:
        """HF_HUB_OFFLINE: the cache is all there is."""
        return bool(constants.is_offline_mode())

    @property
    def token(self) -> str | bool:
        """HF_TOKEN, or False: not even the one that `hf auth login` left on the disk."""
        return os.environ.get("HF_TOKEN") or False

    def headers(self, *, with_token: bool = True) -> dict[str, str]:
        """Of a request for a file's bytes as they are; with the token only to the Hub's own host."""
        authorization = {"Authorization": f"Bearer {self.token}"} if with_token and self.token else {}
        return {"User-Agent": f"gradelora/{__version__}", "Accept-Encoding": "identity", **authorization}

    def repo_cache(self, repo_id: str) -> RepoCache:
        """The folder of one repository in the cache."""
        return RepoCache(self.cache, repo_id)

    def listing(self, repo_id: str, revision: str) -> Listing:
        """The commit that a branch, tag or commit names now, and its files.

        Raises RepoNotFound, RevisionNotFound, GatedRepo, HubUnavailable, NotCached.
        """
        api = HfApi(endpoint=self.endpoint, token=self.token)
        info = self.call(
            f"{repo_id} at {revision}",
            lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=self.timeout_s),
        )
        files = []
        for sibling in info.siblings or ():
            if info.sha is None or sibling.size is None or sibling.blob_id is None:
                raise UnsupportedModel(
                    f"{repo_id} at {revision}: {self.endpoint} gives no sizes or hashes; it is no Hub"
                )
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            files.append(RemoteFile(name=sibling.rfilename, size=sibling.size, sha256=sha256, git_sha1=sibling.blob_id))
        return Listing(str(info.sha), tuple(sorted(files, key=lambda f: f.name)))

    def read(self, repo_id: str, commit: str, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of one file, or what there is of them.

        Raises as `listing`.
        """
        return self.call(f"{repo_id} file {name}", lambda: self._read(repo_id, commit, name, start, stop))

    def _read(self, repo_id: str, commit: str, name: str, start: int, stop: int) -> bytes:
        url = hf_hub_url(repo_id, name, revision=commit, endpoint=self.endpoint)
        headers = {**self.headers(), "Range": f"bytes={start}-{stop - 1}"}
        # Streamed: a server that ignores the Range must not make us swallow gigabytes.
        with get_session().stream("GET", url, headers=headers, timeout=self.timeout_s) as response:
            hf_raise_for_status(response)
            skip = start if response.status_code == 200 else 0
            wanted, received = stop - start, bytearray()
            for chunk in response.iter_bytes(64 * 1024):
                received += chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(received) >= wanted:
                    break
        return bytes(received[:wanted])

    def call(self, what: str, ask: Callable[[], T]) -> T:
        """`ask()`, again after a pause while its error is transient, as often as `runtime.hub_retries`.

        Raises the named error of what `ask` raised last.
        """
        for attempt in range(self.retries + 1):
            try:
                return ask()
            except Exception as error:
                known = failures.named(error, what, self.endpoint)
                if known is None:
                    raise
                asked_s = failures.retry_after_s(error)
                if asked_s is not None and asked_s > LONGEST_RETRY_AFTER_S:
                    raise HubUnavailable(f"{what}: {self.endpoint} asks to wait {asked_s:.0f} s; try later") from error
                if not isinstance(known, Transient) or attempt == self.retries:
                    raise known from error
                pause_s = asked_s if asked_s is not None else _backoff_s(attempt)
                print(f"{known}; attempt {attempt + 2} of {self.retries + 1} in {pause_s:.1f} s", flush=True)
                time.sleep(pause_s)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _backoff_s(attempt: int) -> float:
    """Doubling, with jitter: many workers must not come back in step."""
    return min(LONGEST_PAUSE_S, 2.0**attempt) * random.uniform(0.5, 1)
