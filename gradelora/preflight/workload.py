"""How much the run computes: rows, tokens and steps, from the encoded data where it exists.

Nothing encoded yet (a laptop, new data): tokens of an item are bounded by encode.max_length and
items are counted in the files, if these are there at all.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradelora.artifacts import DataFiles, EncodedDataset, Frozen
from gradelora.config import RunConfig, TrainConfig
from gradelora.rows import Items, schedule_of

# A field of every item and of nothing else; within a text its quotes would be escaped.
ANSWER = re.compile(rb'(?<!\\)"answer"\s*:')
CHUNK_BYTES, OVERLAP_BYTES = 2**22, 64
# {"score": 3} with its control tokens, rounded up.
TARGET_TOKENS = 16
# Nothing encoded: allowed scores are taken to be 0 to 10 in half points, 59 nodes of gpt-oss's tokens.
CANDIDATE_TOKENS = 64


class Workload(Frozen):
    """What a run computes, and where that is known from.

    `longest` counts the tokens of an item, `longest_branch` those of a held-out one behind its prefix,
    `longest_prefix` those of the prefix, `judged_items` and `judged_questions` what is scored in the
    largest split, `candidate_tokens` the nodes of the largest trie of a question's allowed scores,
    behind each answer;
    `row_tokens` and `positions` are those of the largest row: tokens, and supervised positions.
    `train_tokens` and `steps` are those of the whole run on all ranks, None where no data is known; the
    other counts likewise.
    """

    source: str
    exact: bool
    longest: int
    longest_branch: int
    row_tokens: int
    positions: int
    candidate_tokens: int = CANDIDATE_TOKENS
    longest_prefix: int | None = None
    judged_items: int | None = None
    judged_questions: int | None = None
    items: int | None = None
    held_out_items: int | None = None
    data_bytes: int | None = None
    steps: int | None = None
    micro_steps: int | None = None
    train_tokens: int | None = None
    held_out_tokens: int | None = None
    validation_tokens: int = 0

    def computed_tokens(self, train: TrainConfig) -> int:
        """Of training and of the validations between its steps, which only run forward: a part of the work a token."""
        validations = round(1 / train.evaluate_every)
        passes = 3 if train.gradient_checkpointing else 2
        return (self.train_tokens or 0) + validations * self.validation_tokens // passes


def workload_of(run: RunConfig, data: DataFiles | None, encoded: EncodedDataset | None) -> Workload:
    """Real lengths where there is encoded data, else bounds."""
    if encoded is not None:
        return _measured(run, encoded, data)
    return _bounded(run, data)


def _measured(run: RunConfig, encoded: EncodedDataset, data: DataFiles | None) -> Workload:
    items = read_items(encoded.path / "train")
    train = run.train
    schedule = schedule_of(train, items)
    rows = sorted({row for step in schedule.rows for micro in step for rank in micro for row in rank})
    held_out = [s for s in run.evaluate.splits if getattr(encoded.splits, s)]
    judged = [read_items(encoded.path / split) for split in held_out]
    tries = candidate_nodes(encoded.path)
    return Workload(
        source=f"the encoded data {encoded.digest[:12]}",
        exact=True,
        longest=encoded.longest,
        longest_branch=max((int((j.prompt_lengths - j.prefix_lengths).max()) for j in judged), default=encoded.longest),
        row_tokens=max((items.row_tokens(row) for row in rows), default=1),
        positions=max((sum(len(items.target(i)) for i in row) for row in rows), default=1),
        longest_prefix=max((int(j.prefix_lengths.max()) for j in judged), default=None),
        judged_items=sum(map(len, judged)) or None,
        judged_questions=len({question for j in judged for question in j.questions}) or None,
        candidate_tokens=max(tries.values(), default=CANDIDATE_TOKENS),
        items=len(items),
        held_out_items=sum(len(j) for j in judged),
        data_bytes=data.total_bytes if data else None,
        steps=schedule.steps,
        micro_steps=schedule.steps * train.accumulation,
        train_tokens=sum(schedule.tokens(items, step) for step in range(schedule.steps)),
        held_out_tokens=sum(_scored_tokens(j, tries) for j in judged),
        validation_tokens=_tokens(encoded.path / "validation") if encoded.splits.validation else 0,
    )


def _tokens(folder: Path) -> int:
    return int(read_items(folder).offsets[-1])


def _scored_tokens(items: Items, tries: Mapping[str, int]) -> int:
    """Tokens that scoring computes: a question's prefix once, every answer with its candidates behind it."""
    prefixes = {q: int(items.prefix_lengths[i]) for i, q in enumerate(items.questions)}
    candidates = sum(tries.get(q, CANDIDATE_TOKENS) for q in items.questions)
    return sum(prefixes.values()) + int((items.prompt_lengths - items.prefix_lengths).sum()) + candidates


def candidate_nodes(folder: Path) -> dict[str, int]:
    """By question, tokens of the trie that its allowed scores form: what they begin with alike counts once."""
    try:
        read = json.loads((folder / "candidates.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {
        key: len({tuple(target[:end]) for target in value["targets"] for end in range(1, len(target))})
        for key, value in read.items()
    }


def read_items(folder: Path) -> Items:
    """A split's Arrow stream files, without the datasets library: a plan imports nothing heavy."""
    batches = [batch for path in sorted(folder.glob("*.arrow")) for batch in _batches(path)]
    if not any(batch.num_rows for batch in batches):
        none = np.zeros(0, dtype=np.int32)
        return Items(none, np.zeros(1, dtype=np.int64), none, none, ())
    table = pa.Table.from_batches(batches).combine_chunks()
    ids = table["input_ids"].chunk(0)
    return Items(
        ids=ids.values.to_numpy(),
        offsets=ids.offsets.to_numpy().astype(np.int64),
        prefix_lengths=table["prefix_length"].to_numpy(),
        prompt_lengths=table["prompt_length"].to_numpy(),
        questions=tuple(table["question_key"].to_pylist()),
    )


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def count_answers(path: Path) -> int:
    """Items of a data file by their answer fields, unparsed: validation will look closer.  0 for what is unreadable."""
    count, rest = 0, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                found = rest + chunk
                last = 0
                for match in ANSWER.finditer(found):
                    count, last = count + 1, match.end()
                rest = found[max(last, len(found) - OVERLAP_BYTES) :]
    except (OSError, EOFError, zlib.error):
        return 0
    return count


def target_tokens(run: RunConfig) -> int:
    """Supervised positions of an answer, at most: feedback may be as long as an item."""
    return TARGET_TOKENS if run.encode.target == "score" else run.encode.max_length


def _bounded(run: RunConfig, data: DataFiles | None) -> Workload:
    """At most so much: each answer as long as it may be and in a row of its own, for who shares one is not known."""
    train, longest = run.train, run.encode.max_length
    row = max(longest, min(train.answers_per_row * longest, train.tokens_per_row))
    bound = Workload(
        source=f"encode.max_length={longest}, an upper bound: no encoded data",
        exact=False,
        longest=longest,
        longest_branch=longest,
        row_tokens=row,
        positions=min(row, train.answers_per_row * target_tokens(run)),
    )
    if data is None:
        return bound.model_copy(update={"source": bound.source + "; the data files are not here"})
    items = sum(count_answers(data.path / entry.name) for entry in data.files)
    split = run.validation.split
    held_out = round(items * split.unseen_answers_share)
    trained = items - held_out - round(items * split.validation_share)
    passes, of_step = math.ceil(trained * train.epochs), train.processes * train.accumulation * train.micro_batch_rows
    steps, tokens = -(-passes // of_step), passes * longest
    if train.max_steps and train.max_steps < steps:
        steps, tokens = train.max_steps, min(tokens, train.max_steps * of_step * row)
    return bound.model_copy(
        update={
            "source": f"{bound.source}; {items} answers in the data files",
            "items": trained,
            "held_out_items": held_out,
            "data_bytes": data.total_bytes,
            "steps": steps,
            "micro_steps": steps * train.accumulation,
            "train_tokens": tokens,
            "held_out_tokens": held_out * (longest + CANDIDATE_TOKENS),
            "validation_tokens": round(items * split.validation_share) * longest,
        }
    )
