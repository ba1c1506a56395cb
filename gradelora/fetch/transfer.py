"""The `hf_transfer` engine: a child process a file, whose word is never taken.

hf_transfer 0.1.9 cannot resume, has no timeout, holds the GIL, deletes its file on error and
calls a wrong answer success.  So it fills a sparse file in a process of its own; a second link
keeps the file whatever it does; what it wrote is read off the file's data and holes; the Range
engine fills the rest, and the sha256 decides.
"""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from gradelora.errors import NotEnoughDisk
from gradelora.fetch.part import BLOCK_BYTES, Part
from gradelora.fetch.progress import spell_bytes
from gradelora.fetch.source import Link, Source

# Smaller chunks win: a chunk reaches the disk only when it is whole.
CHUNK_BYTES = 4 * 2**20
# Below this the child's start costs more than it gains.
WORTH_BYTES = 64 * 2**20
# linux/prctl.h
PR_SET_PDEATHSIG = 1


def has_holes(folder: Path) -> bool:
    """Whether the file system tells data from holes: without that nothing is known of what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"probe.{os.getpid()}"
    with probe.open("wb") as file:
        probe.unlink()
        file.truncate(4 * 2**20)
        os.pwrite(file.fileno(), b"x" * 4096, 2 * 2**20)
        os.fsync(file.fileno())
        return [*_data(file.fileno(), 4 * 2**20)] == [(2 * 2**20, 2 * 2**20 + 4096)]


def ensure_room(folder: Path, size: int) -> None:
    """Raise NotEnoughDisk unless `size` bytes can be allocated: free space and quota alike.

    They are given back at once, for an allocated file would not show what was written to it.
    """
    probe = folder / f"room.{os.getpid()}"
    with probe.open("wb") as file:
        probe.unlink()
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise NotEnoughDisk(
                f"{folder}: no room for {spell_bytes(size)} ({error.strerror}); free space or set HF_HUB_CACHE"
            ) from error


def transfer(part: Part, source: Source, connections: int, stall_s: float) -> None:
    """Let hf_transfer write as much of a file as it can, from the beginning.

    Raises only what the Hub says when asked for the link.
    """
    link = source.link(part)
    sparse, theirs = _sparse(part), part.path.with_suffix(".transfer")
    theirs.unlink(missing_ok=True)
    sparse.parent.mkdir(parents=True, exist_ok=True)
    with sparse.open("wb") as file:
        file.truncate(part.file.size)
    os.link(sparse, theirs)
    outcome = _run_child(link, theirs, sparse, connections, stall_s)
    print(f"fetch: {part.file.name}: hf_transfer {outcome}", flush=True)
    theirs.unlink(missing_ok=True)


def adopt(part: Part) -> None:
    """Make a part of what hf_transfer wrote, in this run or in one that was killed."""
    if _sparse(part).exists() and not part.path.exists():
        _adopt(part, _sparse(part))
    for left in (_sparse(part), part.path.with_suffix(".transfer")):
        left.unlink(missing_ok=True)


def written_bytes(part: Part) -> int:
    """Bytes that hf_transfer has put on the disk and that are no part yet."""
    try:
        return min(part.file.size, _sparse(part).stat().st_blocks * 512)
    except FileNotFoundError:
        return 0


def _sparse(part: Part) -> Path:
    return part.path.with_suffix(".sparse")


def _adopt(part: Part, sparse: Path) -> None:
    """Note the blocks whose bytes are data, not holes; the file becomes the part."""
    lines = []
    with sparse.open("rb+") as file:
        file.truncate(part.file.size)
        fd = file.fileno()
        for start, stop in _data(fd, part.file.size):
            for index in range(-(-start // BLOCK_BYTES), part.blocks):
                end = index * BLOCK_BYTES + part.block_size(index)
                if end > stop:
                    break
                data = os.pread(fd, part.block_size(index), index * BLOCK_BYTES)
                lines.append(f"{index} {zlib.crc32(data):08x}\n")
    part.journal.write_text("".join(lines))
    sparse.rename(part.path)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents [start, stop) that hold data."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(at, size)


def _run_child(link: Link, target: Path, sparse: Path, connections: int, stall_s: float) -> str:
    """Run hf_transfer to its end or until nothing is written for `stall_s`; what became of it in words."""
    # By stdin: arguments are for everybody to see, and a link is signed.
    request = {"url": link.url, "headers": link.headers, "target": str(target), "connections": connections}
    child = subprocess.Popen(
        [sys.executable, "-m", "gradelora.fetch.transfer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    started = moved = time.monotonic()
    allocated = 0
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        while child.poll() is None:
            time.sleep(0.05)
            now, size = time.monotonic(), sparse.stat().st_blocks * 512
            if size != allocated:
                moved, allocated = now, size
            elif now - moved > stall_s:
                return f"brought nothing for {stall_s:.0f} s and was ended after {spell_bytes(allocated)}"
    except BrokenPipeError:
        return "did not start"
    finally:
        # Its threads hold the GIL, so no handler of it would ever run.
        child.kill()
        child.wait()
    seconds = max(time.monotonic() - started, 1e-3)
    if child.returncode != 0:
        return f"failed after {spell_bytes(allocated)}; http goes on from there"
    return f"wrote {spell_bytes(allocated)} in {seconds:.0f} s, {spell_bytes(allocated / seconds)}/s"


def main() -> None:
    """The child: one download as the request on stdin says."""
    import hf_transfer

    # A killed parent must not leave a download behind that nobody watches.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    request = json.load(sys.stdin)
    hf_transfer.download(
        url=request["url"],
        filename=request["target"],
        max_files=request["connections"],
        chunk_size=CHUNK_BYTES,
        parallel_failures=request["connections"] - 1,
        max_retries=5,
        headers={name: value for name, value in request["headers"].items() if name.lower() != "range"},
    )


if __name__ == "__main__":
    main()
