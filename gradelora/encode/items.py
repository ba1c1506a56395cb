"""items.arrow read piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

# Large enough for the tokenizer's batches, small enough to hold a few of at a time (about 10 MB).
ROWS = 4096


def read_items(path: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of at most ROWS items, in the file's order; one batch of the file is held at a time."""
    # Not memory-mapped: pages once read would count as this process's memory to the end.
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)
