"""Which files of a repository are the model, and names that must not be trusted."""

import fnmatch
from collections.abc import Iterable
from pathlib import PurePosixPath

from gradelora.errors import UnsupportedModel

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
# Small files at the root.  Not here: original/ and metal/ (the same weights again), pickles, GGUF, ONNX.
SMALL = (
    CONFIG,
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    INDEX,
    "LICENSE*",
    "USAGE_POLICY*",
    "README.md",
)


def is_small_file(name: str) -> bool:
    """Whether the encoder, the loader or a reader of the licence needs this file of the root."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SMALL)


def refuse_escapes(repo_id: str, names: Iterable[str]) -> None:
    """Refuse a listing with a name that would leave its folder.  Raises UnsupportedModel."""
    for name in names:
        parts = PurePosixPath(name).parts
        bad = not name or name.startswith("/") or ".." in parts or any(c in name for c in "\\\0:") or "//" in name
        if bad or name != "/".join(parts):
            raise UnsupportedModel(
                f"{repo_id}: the file name {name!r} would leave its folder; do not use this repository"
            )
