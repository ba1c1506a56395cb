"""What LoRA does not touch is shared with the base where the file system can, and copied where it cannot."""

import errno
import fcntl
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradelora.merge.blocks import BLOCK_BYTES, share, whole_blocks
from gradelora.merge.sealing import gaps
from tests.merging import run, save_adapter, save_gpt_oss

CAN_MOUNT = os.geteuid() == 0 and shutil.which("mkfs.xfs") and Path("/dev/loop-control").exists()


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1000, 20_000, (4096, 16_384)), (5000, 6000, (8192, 8192)), (4096, 12_288, (4096, 12_288))],
    ids=["within its ends", "too small", "all of it"],
)
def test_whole_blocks_begin_and_end_within_a_region(start: int, end: int, expected: tuple[int, int]) -> None:
    assert whole_blocks(start, end) == expected
    assert BLOCK_BYTES == 4096


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_blocks_cannot_be_shared_nothing_is(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def cannot(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", cannot)
    assert not share(7, 8, 0, 0, 8192)


def test_a_disk_that_is_full_is_not_taken_for_one_that_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", full)
    with pytest.raises(OSError, match="No space"):
        share(7, 8, 0, 0, 8192)


def test_what_is_shared_and_what_is_written_make_the_file_without_overlap() -> None:
    chance = random.Random(0)
    for _ in range(300):
        cuts = sorted(chance.sample(range(100), 8))
        shared = list(zip(cuts[::2], cuts[1::2], strict=True))
        step, written = chance.randrange(1, 40), []
        for start in range(0, 100, step):
            parts = list(gaps(shared, start, min(start + step, 100)))
            assert all(start <= a < b <= start + step for a, b in parts)
            written += [byte for a, b in parts for byte in range(a, b)]
        assert sorted(written + [byte for a, b in shared for byte in range(a, b)]) == list(range(100))


@pytest.mark.parametrize("refused", ["open", "first write", "later write"])
def test_where_direct_writes_are_refused_the_same_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    base = save_gpt_oss(tmp_path / "base", hidden=512, experts=16, shards=1)
    adapter = save_adapter(base, tmp_path / "adapter")
    expected, refusals, real = run(base, adapter, tmp_path / "expected").digest, [], {"open": os.open, "w": os.pwrite}

    def refuse() -> None:
        refusals.append(refused)
        code = errno.EFAULT if refused == "later write" else errno.EINVAL
        raise OSError(code, os.strerror(code))

    def opened(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            refuse()
        return real["open"](path, flags, *mode)

    def written(file: int, data: memoryview, position: int) -> int:
        direct = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
        if direct and (position > 0) == (refused == "later write"):
            refuse()
        return real["w"](file, data, position)

    monkeypatch.setattr(os, *("open", opened) if refused == "open" else ("pwrite", written))
    assert run(base, adapter, tmp_path / "out").digest == expected
    assert refusals == [refused]


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    with (tmp_path / "image").open("wb") as image:
        image.truncate(2**29)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", tmp_path / "image"], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", tmp_path / "image", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine mounts no image")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and mkfs.xfs")
def test_on_xfs_a_merge_takes_the_room_of_what_it_rewrites(xfs: Path, tmp_path: Path) -> None:
    def used() -> int:
        os.sync()
        return shutil.disk_usage(xfs).used

    base = save_gpt_oss(xfs / "base", layers=4, hidden=512, experts=16)
    adapter = save_adapter(base, xfs / "adapter")
    before = used()
    merged = run(base, adapter, xfs / "out")
    assert used() - before < 0.25 * merged.total_bytes
    assert merged.digest == run(base, adapter, tmp_path / "elsewhere").digest
