"""Bring the files of one commit into the Hub cache and verify every byte.

The cache stays huggingface_hub's: `from_pretrained` and `hf cache verify` accept what lies
there.  Its client checks sizes alone, so each file is hashed here against what the Hub announced.
"""

from pathlib import Path

from gradelora.artifacts import BaseModel, ModelSnapshot
from gradelora.config import FetchConfig, Runtime

VERSION = 1


def fetch(config: FetchConfig, base: BaseModel, *, out: Path, runtime: Runtime) -> ModelSnapshot:  # noqa: ARG001
    """The snapshot folder of `base.commit`, holding the small files or everything.

    Raises ChecksumMismatch and HubUnavailable (transient), NotEnoughDisk, NotCached, and as resolve.
    """
    from gradelora.fetch.snapshot import bring

    return bring(config, base, runtime)
