"""What LoRA does not touch is shared with the base where the file system can, and copied where it cannot."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradelora.merge.regions import Copied
from gradelora.merge.sealing import BLOCK_BYTES, copy
from tests.merging import run, save_adapter, save_gpt_oss

CAN_MOUNT = os.geteuid() == 0 and shutil.which("mkfs.xfs") and Path("/dev/loop-control").exists()


def copied(source: Path, target: Path, region: Copied) -> bytes:
    with source.open("rb") as there, target.open("wb") as here:
        copy(there.fileno(), here.fileno(), region)
    return target.read_bytes()[region.start :]


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        # Head, whole blocks, tail; a region within one block; whole blocks alone.
        (Copied(1000, 20_000, 1000), [(1000, 3096), (4096, 12_288), (16_384, 3616)]),
        (Copied(5000, 6000, 5000), [(5000, 1000)]),
        (Copied(4096, 12_288, 8192), [(4096, 8192)]),
        # Blocks that do not lie alike cannot be shared.
        (Copied(1000, 20_000, 1001), [(1000, 19_000)]),
    ],
    ids=["three parts", "too small", "aligned", "shifted"],
)
def test_whole_blocks_are_asked_for_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: Copied, expected: list[tuple[int, int]]
) -> None:
    asked, real = [], os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *given: asked.append((given[4], given[2])) or real(*given))
    (tmp_path / "base").write_bytes(os.urandom(40_000))
    data = copied(tmp_path / "base", tmp_path / "new", region)
    assert data == (tmp_path / "base").read_bytes()[region.source : region.source + region.end - region.start]
    assert asked == expected
    assert BLOCK_BYTES == 4096


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_kernel_cannot_copy_bytes_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def cannot(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    (tmp_path / "base").write_bytes(os.urandom(3_000_000))
    region = Copied(1000, 2_900_000, 900)
    assert copied(tmp_path / "base", tmp_path / "new", region) == (tmp_path / "base").read_bytes()[900:2_899_900]


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
def test_on_xfs_a_merge_takes_the_room_of_what_it_rewrites(xfs: Path) -> None:
    def used() -> int:
        os.sync()
        return shutil.disk_usage(xfs).used

    base = save_gpt_oss(xfs / "base", layers=4, hidden=512, experts=16)
    adapter = save_adapter(base, xfs / "adapter")
    before = used()
    merged = run(base, adapter, xfs / "out")
    assert used() - before < 0.25 * merged.total_bytes
