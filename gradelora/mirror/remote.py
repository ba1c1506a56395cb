"""Files at an fsspec URL, with one error for everything that keeps them out of reach.

Credentials come from the environment, as fsspec and the backends read them (AWS_*, FSSPEC_*,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*); none is ever passed here.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gradelora.errors import MirrorUnreachable, MissingTool, NotEnoughDisk

# A mirror that does not answer must not hold a run for long; the backends' own defaults are minutes.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}},
}
FULL = {errno.ENOSPC, errno.EDQUOT}
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Remote:
    """One place: names are POSIX and relative to `url`."""

    def __init__(self, url: str) -> None:
        """Raises MissingTool where the backend's package is not installed."""
        import fsspec
        from fsspec.config import conf

        self.url = url.rstrip("/")
        protocol = urlsplit(url).scheme
        options = {} if protocol in conf else OPTIONS.get(protocol, {})
        try:
            # Another machine writes here, too: a remembered listing would be wrong.
            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            package = PACKAGES.get(protocol, protocol)
            raise MissingTool(f"store.mirror={url}: {error}; pip install {package}") from error
        self._root = self._root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """A small file's bytes, or None where there is none.  Raises MirrorUnreachable."""
        with self._reaching(name):
            try:
                content: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a small file.  Raises MirrorUnreachable."""
        with self._reaching(name):
            self._make_folder(name)
            self._fs.pipe_file(self._at(name), content)

    def send(self, path: Path, name: str) -> None:
        """Copy a local file there.  Raises FileNotFoundError where it is gone, MirrorUnreachable."""
        size = path.stat().st_size
        with self._reaching(name):
            self._make_folder(name)
            self._fs.put_file(str(path), self._at(name))
        arrived = self.size(name)
        if arrived != size:
            raise MirrorUnreachable(f"{self.url}/{name}: {arrived} bytes arrived of {size}; it is sent again later")

    def size(self, name: str) -> int | None:
        """A file's bytes, or None where there is none.  Raises MirrorUnreachable."""
        with self._reaching(name):
            try:
                size: int = self._fs.info(self._at(name))["size"]
            except FileNotFoundError:
                return None
        return size

    def bring(self, name: str, path: Path) -> bool:
        """Copy a file here; False where there is none.  Raises MirrorUnreachable, NotEnoughDisk."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._reaching(name):
            try:
                self._fs.get_file(self._at(name), str(path))
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno not in FULL:
                    raise
                # The mirror is only read: the disk that is full is this machine's.
                path.unlink(missing_ok=True)
                raise NotEnoughDisk(
                    f"{path.parent}: {error.strerror} while {self.url}/{name} was brought; free some, or set store.root"
                ) from error
        return True

    def names(self, below: str) -> list[str]:
        """Every file under a folder, in order; empty where there is no such folder.  Raises MirrorUnreachable."""
        with self._reaching(below):
            found: list[str] = self._fs.find(self._at(below))
        root = PurePosixPath(self._root)
        return sorted(PurePosixPath(path).relative_to(root).as_posix() for path in found)

    def remove(self, names: list[str]) -> None:
        """Remove files in this order; one that is gone already is no error.  Raises MirrorUnreachable."""
        for name in names:
            with self._reaching(name):
                try:
                    self._fs.rm_file(self._at(name))
                except FileNotFoundError:
                    continue

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        # Object stores have no folders, and making one there may mean making a bucket.
        if "file" in self._fs.protocol:
            # The mode is that of the last folder alone: it holds student text, as the store does.
            Path(self._root).mkdir(parents=True, exist_ok=True, mode=0o700)
            Path(self._at(name)).parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except NotEnoughDisk:
            raise
        except Exception as error:
            # Every backend has errors of its own: denied, no such bucket, no route, a name that does not resolve.
            said = " ".join(str(error).split()) or type(error).__name__
            raise MirrorUnreachable(
                f"store.mirror={self.url}: {name or 'the mirror'} cannot be reached ({type(error).__name__}: {said}); "
                "look at the address, the network and the credentials in the environment"
            ) from error
