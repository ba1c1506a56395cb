"""The whole folder under one layout, written batch by batch in constant memory."""

import json
from pathlib import Path

from gradelora.artifacts import SPLITS, EncodedDataset, SplitCounts
from gradelora.config import EncodeConfig
from gradelora.encode.candidates import Candidates
from gradelora.encode.dataset import SplitWriter
from gradelora.encode.items import read_items
from gradelora.encode.rows import Encoder
from gradelora.prompt.layout import Layout


def write_folder(items: Path, layout: Layout, config: EncodeConfig, out: Path) -> EncodedDataset:
    """Encode items.arrow into `out`.  Raises TargetTooLong and UnsupportedModel."""
    candidates = Candidates()
    writers = {split: SplitWriter(out / split, split) for split in SPLITS}
    with (out / "over_length.jsonl").open("w", encoding="utf-8") as over_length:
        encoder = Encoder(layout, config, over_length)
        for batch in read_items(items):
            candidates.see(batch)
            for split, rows in encoder.encode(batch).items():
                writers[split].write(rows)
    for writer in writers.values():
        writer.close()
    (out / "candidates.json").write_text(candidates.to_json(layout), encoding="utf-8")
    described = json.dumps(layout.describe(), indent=1, sort_keys=True, ensure_ascii=False)
    (out / "layout.json").write_text(f"{described}\n", encoding="utf-8")
    return EncodedDataset.collect(
        out,
        layout=layout.name,
        splits=SplitCounts(**{split: writers[split].rows for split in SPLITS}),
        tokens=sum(writer.tokens for writer in writers.values()),
        longest=max(writer.longest for writer in writers.values()),
        pad_token_id=layout.pad_token_id,
    )
