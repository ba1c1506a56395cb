"""The nouns that pass between stages.

An artifact is a set of files and the facts about them.  Its `digest` is its identity:
contents and facts, never paths or times, so the same work gives the same digest
everywhere.  What lies under `aside/` (logs, Data Docs, timings) carries times: it is kept
beside the artifact and is no part of it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict

ASIDE = "aside"
Split = Literal["train", "validation", "unseen_answers", "unseen_questions"]
SPLITS: tuple[Split, ...] = ("train", "validation", "unseen_answers", "unseen_questions")


class Frozen(PydanticModel):
    """What crosses a stage: immutable, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN.

    Raises TypeError for what has no stable form (a set, an object, a path).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """sha256 of UTF-8 text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileEntry(Frozen):
    """One file: its POSIX name relative to the artifact, size in bytes, contents, time."""

    name: str
    size: int
    sha256: str
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """Read and hash one file."""
        stat = path.stat()
        return cls(name=name, size=stat.st_size, sha256=sha256_file(path), mtime_ns=stat.st_mtime_ns)


def files_under(folder: Path) -> tuple[FileEntry, ...]:
    """Every regular file below `folder` that is part of an artifact, by name: no receipt, nothing aside."""
    names = []
    for where, folders, files in os.walk(folder):
        if Path(where) == folder and ASIDE in folders:
            folders.remove(ASIDE)
        names += [(Path(where) / f).relative_to(folder).as_posix() for f in files]
    return tuple(FileEntry.of(folder / n, n) for n in sorted(names) if n != "receipt.json")


class Artifact(Frozen):
    """Files and facts with one identity.  Subclasses add facts, which must not carry times."""

    IDENTITY_EXCLUDES: ClassVar[frozenset[str]] = frozenset({"path", "files"})

    path: Path
    files: tuple[FileEntry, ...]

    @classmethod
    def collect(cls, path: Path, **facts: Any) -> Self:
        """The artifact whose files are those now under `path`."""
        return cls(path=path, files=files_under(path), **facts)

    @property
    def digest(self) -> str:
        """sha256 of kind, facts and file contents."""
        contents = [[f.name, f.size, f.sha256] for f in self.files]
        facts = self.model_dump(mode="json", exclude=set(self.IDENTITY_EXCLUDES))
        return sha256_text(canonical_json([type(self).__name__, facts, contents]))

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(f.size for f in self.files)


class DataFiles(Artifact):
    """The user's data files, by their bytes; `path` is the folder that holds them all."""


class TensorInfo(Frozen):
    """One tensor of a safetensors header: `dtype` as the format spells it (BF16, U8, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    nbytes: int


class RemoteFile(Frozen):
    """One file of a Hub repository: `sha256` for LFS files, `git_sha1` (blob id) for small ones."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str


class BaseModel(Artifact):
    """What the Hub says about one commit of the base model; nothing of it downloaded but headers.

    `files` and `path` are empty: a description is no folder.  `config_json` is config.json's
    text, `remote_files` only those that a fetch would bring.
    """

    repo_id: str
    commit: str
    config_json: str
    remote_files: tuple[RemoteFile, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def config(self) -> dict[str, Any]:
        """config.json, parsed."""
        parsed: dict[str, Any] = json.loads(self.config_json)
        return parsed


class ModelSnapshot(Artifact):
    """Files of one commit in the Hub cache, every byte verified; `path` is the snapshot folder."""

    repo_id: str
    commit: str


class SplitCounts(Frozen):
    """Number of items in each split."""

    train: int
    validation: int
    unseen_answers: int
    unseen_questions: int


class ValidatedRecords(Artifact):
    """items.arrow, records.arrow, quarantine.jsonl, findings.json (see gradelora.records)."""

    items: int
    records: int
    quarantined: int
    warnings: int
    splits: SplitCounts


class EncodedDataset(Artifact):
    """One Arrow dataset a split (`datasets.load_from_disk`) and candidates.json (see gradelora.encode)."""

    layout: str
    splits: SplitCounts
    tokens: int
    longest: int
    pad_token_id: int


class Adapter(Artifact):
    """A PEFT adapter: adapter_model.safetensors, adapter_config.json, history.json (losses by step).

    `steps` were trained; `chosen_step` is the one whose weights these are, None where it is the last.
    """

    repo_id: str
    commit: str
    trainable_parameters: int
    total_parameters: int
    steps: int
    final_loss: float
    chosen_step: int | None = None


class Interval(Frozen):
    """A point estimate with its bootstrap interval; None with a reason where undefined."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


class EvalReport(Artifact):
    """predictions.jsonl and metrics.json; the headline numbers on the gate's split as facts."""

    split: Split
    items: int
    base_qwk: Interval
    adapter_qwk: Interval
    qwk_gain: Interval


class Agreed(Frozen):
    """The merged model beside base + adapter on the same items; differences of log-probabilities in nats.

    `shift` is the mean difference as a share of `adapter_effect`, what the adapter changed on
    average.  `ties` are those of `changed_scores` where base + adapter held both scores for about
    equal: no further apart than the log-probabilities may shift.
    """

    items: int
    changed_scores: int
    ties: int
    mean_difference: float
    largest_difference: float
    adapter_effect: float
    shift: float


class MergedModel(Artifact):
    """A checkpoint with the adapter added to its weights, in the base's own format or in bf16.

    `least_delta_survival` is that of the worst of the matrices in delta_survival.jsonl, None where
    nothing was rounded to MXFP4 again; `agreed` is None where no item was verified.
    """

    repo_id: str
    commit: str
    merged_tensors: int
    dtype: Literal["base", "bf16"] = "base"
    least_delta_survival: float | None = None
    agreed: Agreed | None = None
