"""A split's folder as `datasets.load_from_disk` reads it, written as a stream.

Same files as Dataset.save_to_disk (datasets/arrow_dataset.py), without importing datasets:
one Arrow stream, dataset_info.json, state.json.  The fingerprint is that of the contents,
where datasets' own is random.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradelora.artifacts import Split, sha256_file

DATA = "data-00000-of-00001.arrow"
FIELDS = {
    "item_id": pa.string(),
    "record_id": pa.string(),
    "question_key": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "prefix_length": pa.int32(),
    "prompt_length": pa.int32(),
    "score": pa.float64(),
    "max_score": pa.float64(),
    "rater2_score": pa.float64(),
    "student_id": pa.string(),
    "group": pa.string(),
}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """An Arrow type as datasets' Features spell it."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {pa.string(): "string", pa.int32(): "int32", pa.float64(): "float64"}
    return {"dtype": names[kind], "_type": "Value"}


FEATURES = {name: _feature(kind) for name, kind in FIELDS.items()}
SCHEMA = pa.schema(FIELDS, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})


class SplitWriter:
    """One split's folder; `rows`, `tokens` and `longest` (tokens of one item) are counted on the way."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split
        self.rows = self.tokens = self.longest = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = pa.ipc.new_stream(str(folder / DATA), SCHEMA)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append items; schema SCHEMA."""
        # Not offsets.to_numpy(): that imports pandas.
        lengths = np.diff(np.frombuffer(batch.column("input_ids").offsets.buffers()[1], dtype=np.int32))
        self.rows += batch.num_rows
        self.tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        self._stream.write_batch(batch)

    def close(self) -> None:
        """End the stream and describe it."""
        self._stream.close()
        info = {"citation": "", "description": "", "features": FEATURES, "homepage": "", "license": ""}
        state: dict[str, Any] = {
            "_data_files": [{"filename": DATA}],
            "_fingerprint": sha256_file(self.folder / DATA)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self.split,
        }
        for name, content in (("dataset_info.json", info), ("state.json", state)):
            (self.folder / name).write_text(f"{json.dumps(content, indent=2, sort_keys=True)}\n", encoding="utf-8")
