"""The data that an adapter was trained on: they say how its prompts are made, and which scores it knows."""

from pathlib import Path

from pydantic import ValidationError

from gradelora.artifacts import EncodedDataset
from gradelora.config import EncodeConfig
from gradelora.errors import Damaged
from gradelora.receipt import RECEIPT, read_receipt, restored


def trained_on(root: Path, digest: str) -> tuple[EncodedDataset, EncodeConfig] | None:
    """The encoded data of that digest and how they were encoded, None where the store has them not."""
    for path in sorted(root.glob(f"encode/[!.]*/{RECEIPT}")):
        try:
            receipt = read_receipt(path.parent)
            if receipt.digest == digest:
                data = restored(receipt, path.parent, EncodedDataset)
                return data, EncodeConfig.model_validate(receipt.config)
        except (Damaged, ValidationError):
            # Another data set's receipt, or one that an earlier version wrote otherwise.
            continue
    return None
