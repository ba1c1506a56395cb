"""Records to tokens: one Arrow dataset a split, in constant memory.

The folder holds `train/`, `validation/`, `unseen_answers/`, `unseen_questions/`, each readable
by `datasets.load_from_disk`; `candidates.json`, the scores that may be given to each question
and their target ids; `layout.json`, everything that decided the ids; and `over_length.jsonl`,
the answers that did not fit and what was done with them.
"""

import os
from pathlib import Path

from gradelora.artifacts import EncodedDataset, ModelSnapshot, ValidatedRecords
from gradelora.config import EncodeConfig, Runtime

VERSION = 2


def encode(
    config: EncodeConfig, records: ValidatedRecords, tokenizer: ModelSnapshot, *, out: Path, runtime: Runtime
) -> EncodedDataset:
    """Encode every item of `records` with the tokenizer of the snapshot.

    Raises UnsupportedModel where the tokenizer cannot carry the layout, and TargetTooLong
    where a question and its target alone exceed max_length.
    """
    # Read when the tokenizer's thread pool starts; more threads take more CPU-seconds in all.
    os.environ.setdefault("RAYON_NUM_THREADS", str(runtime.encode_workers))
    from gradelora.encode.folder import write_folder
    from gradelora.prompt import load_layout

    return write_folder(records.path / "items.arrow", load_layout(tokenizer.path, config), config, out)
