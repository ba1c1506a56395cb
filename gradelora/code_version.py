"""Which code made something: the version, and a hash of the very sources."""

import hashlib
from pathlib import Path

from gradelora import __version__


def code_version() -> str:
    """`0.1.0, sources <sha256>`: over the names and contents of this program's own files."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}, sources {digest.hexdigest()}"
