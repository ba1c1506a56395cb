"""The user's data files: paths and globs to one artifact, identified by bytes."""

import glob
import os
from pathlib import Path

from gradelora.artifacts import DataFiles, FileEntry
from gradelora.errors import BadData

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def collect_data_files(patterns: tuple[str, ...]) -> DataFiles:
    """The files that `patterns` name, relative to the working directory, sorted and hashed.

    A pattern is a path or a glob (`**` crosses folders).  `path` is the folder that holds all
    of them, and names are relative to it, so that moving the data changes no identity.
    Raises BadData for a pattern without a file and for a file of another kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        for path in _matches(pattern):
            found[path] = None
    if not found:
        raise BadData("data.files names no file; give paths or globs such as data/*.json")
    folder = Path(os.path.commonpath([path.parent for path in found]))
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return DataFiles(path=folder, files=tuple(FileEntry.of(names[name], name) for name in sorted(names)))


def _matches(pattern: str) -> list[Path]:
    """Absolute paths of one pattern; a path that exists is taken as it is, brackets and all."""
    if Path(pattern).is_dir():
        raise BadData(f"{pattern} is a folder; name its files, e.g. {pattern.rstrip('/')}/**/*.json")
    # Path.glob takes no absolute pattern.
    paths = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
    # Path.resolve would follow a link and lose its name.
    files = [Path(os.path.abspath(p)) for p in paths if Path(p).is_file()]  # noqa: PTH100
    if not files:
        raise BadData(f"{pattern}: no such file under {Path.cwd()}; check data.files")
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise BadData(f"{path}: not one of {' '.join(SUFFIXES)}; rename it, or narrow the pattern {pattern}")
        if not os.access(path, os.R_OK):
            raise BadData(f"{path}: may not be read by this user; change its permissions")
    return files
