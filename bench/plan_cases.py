"""What bench_plan predicts and measures: models with random weights, answers, settings."""

import json
import random
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from gradelora.artifacts import BaseModel, EncodedDataset, RemoteFile, SplitCounts, TensorInfo
from gradelora.config import LoraSettings, RunConfig, TrainConfig
from gradelora.config_file import build_config
from tests.tiny_data import END, FEATURES
from tests.tiny_models import save_gpt_oss

STEPS = 2
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
MIDDLE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "head_dim": 64,
    "num_local_experts": 16,
    "vocab_size": 8192,
    "sliding_window": 128,
    "initializer_range": 0.02,
}
WORDS: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "vocab_size": 100_000}


@dataclass(frozen=True)
class Case:
    """One training run: which model, how many tokens, what differs from BASE."""

    name: str
    model: str
    prefix: int = 100
    answer: int = 40
    settings: dict[str, Any] = field(default_factory=dict)
    # What is measured besides the training: its evaluation, and the merge of its adapter.
    later: tuple[str, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """Two ranks on a CPU, two steps, a checkpoint after each."""
        values: dict[str, Any] = {
            "device": "cpu",
            "precision": "fp32",
            "answers_per_row": 4,
            "accumulation": 1,
            "max_steps": STEPS,
            "epochs": 50,
            "warmup_steps": 0,
            "save_every": 0.5,
            "evaluate_every": 1,
            "lora": LoraSettings(),
        }
        return TrainConfig.model_validate(values | self.settings)

    @property
    def run(self) -> RunConfig:
        """The whole run's configuration, as `gradelora plan` would read it."""
        train = self.config
        same = {"device": "cpu", "precision": train.precision, "weights": train.weights}
        return build_config(
            {
                "name": "bench",
                "base": {"repo_id": "bench/model"},
                "data": {"files": ["none"]},
                "encode": {"layout": "harmony"},
                "train": train.model_dump(mode="json"),
                "evaluate": same | {"splits": ["unseen_answers"], "resamples": 200},
                "merge": {"enabled": True, "dtype": "bf16", "verify_items": 0},
                "store": {"root": "store"},
            }
        )


BF16 = {"weights": "bf16"}
ONE_PROCESS = {"parallel": "layers", "processes": 1}
CHECKPOINTED = {"gradient_checkpointing": True}
SCORED, MERGED = ("evaluate",), ("evaluate", "merge")
CASES = (
    Case("tiny, packed", "tiny"),
    Case("tiny, packed, one process", "tiny", settings=ONE_PROCESS),
    Case("packed", "middle", later=MERGED),
    Case("packed, 5x the tokens", "middle", 400, 100, later=SCORED),
    Case("packed, 5x the tokens, checkpointing", "middle", 400, 100, CHECKPOINTED),
    Case("packed, 4 rows", "middle", settings={"micro_batch_rows": 4}),
    Case("packed, r=256", "middle", settings={"lora": LoraSettings(r=256)}),
    Case("packed, one process", "middle", settings=ONE_PROCESS),
    Case("packed, 100,000 words", "words", later=SCORED),
    Case("packed, 100,000 words, 16 answers", "words", settings={"answers_per_row": 16}),
    Case("bf16 + zero2", "middle", settings=BF16),
    Case("bf16 + zero3", "middle", settings=BF16 | {"parallel": "zero3"}),
    Case("bf16 + layers", "middle", settings=BF16 | ONE_PROCESS),
    Case("dense + zero2", "dense", settings=BF16, later=MERGED),
    Case("dense + zero2, 5x the tokens", "dense", 400, 100, BF16),
    Case("dense + zero3, checkpointing", "dense", 400, 100, BF16 | CHECKPOINTED | {"parallel": "zero3"}),
)
# No constant of the plan was chosen with these in view.
UNSEEN = (
    Case("packed, activations in bf16", "middle", 200, 60, {"precision": "bf16"}, SCORED),
    Case("train.best, every checkpoint with it", "tiny", settings={"best": "validation_loss"}),
    Case("packed, 12 answers, no dropout", "middle", 200, 60, {"answers_per_row": 12, "lora": LoraSettings(dropout=0)}),
    Case("packed, 8 experts at a time, r=64", "middle", 50, 30, {"expert_chunk": 8, "lora": LoraSettings(r=64)}),
    Case("dense + layers, 2 rows", "dense", 200, 60, BF16 | ONE_PROCESS | {"micro_batch_rows": 2}),
)


def save_model(name: str, folder: Path) -> Path:
    """The model of a case as files."""
    if name == "dense":
        return _save_dense(folder)
    changes = {"tiny": SMALL, "middle": MIDDLE, "words": WORDS}[name]
    return save_gpt_oss(folder, **changes)


def _save_dense(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_answers(folder: Path, case: Case, vocabulary: int) -> EncodedDataset:
    """4 questions x 16 answers, all of `prefix` + `answer` tokens, the last 4 the target; some more where asked for."""
    choose = random.Random(0)

    def words(count: int) -> list[int]:
        return [choose.randrange(10, vocabulary) for _ in range(count)]

    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SplitCounts.model_fields}
    candidates = {}
    for question in range(4):
        prefix, key = words(case.prefix), f"{question:016x}"
        targets = [[*words(2), 4 + score, END] for score in range(4)]
        candidates[key] = {"max_score": 3.0, "step": 1.0, "scores": [0.0, 1.0, 2.0, 3.0], "targets": targets}
        splits = ["train"] * 16 + ["validation"] * 4 * (case.config.best != "last")
        for answer, split in enumerate(splits + ["unseen_answers"] * 4 * bool(case.later)):
            ids = [*prefix, *words(case.answer - 4), *targets[answer % 4]]
            rows[split].append(_item(f"f:{question}:{answer}", key, ids, case.prefix, float(answer % 4)))
    for split, items in rows.items():
        columns = {name: [item[name] for item in items] for name in FEATURES}
        Dataset.from_dict(columns, features=FEATURES).save_to_disk(folder / split, num_shards=1)
    (folder / "candidates.json").write_text(json.dumps(candidates))
    length = case.prefix + case.answer
    counts = SplitCounts(**{split: len(items) for split, items in rows.items()})
    return EncodedDataset.collect(
        folder, layout="bench", splits=counts, tokens=length * sum(c for _, c in counts), longest=length, pad_token_id=0
    )


def _item(item_id: str, question: str, ids: list[int], prefix: int, score: float) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "record_id": item_id,
        "question_key": question,
        "input_ids": ids,
        "prefix_length": prefix,
        "prompt_length": len(ids) - 4,
        "score": score,
        "max_score": 3.0,
        "rater2_score": None,
        "student_id": None,
        "group": None,
    }


@cache
def described(folder: Path) -> BaseModel:
    """What the Hub would say about the files of a folder: their safetensors headers."""
    tensors, files = [], []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors.append(TensorInfo(name=name, dtype=entry["dtype"], shape=shape, file=path.name, nbytes=end - start))
        files.append(RemoteFile(name=path.name, size=path.stat().st_size, sha256=None, git_sha1="0" * 40))
    return BaseModel(
        path=Path(),
        files=(),
        repo_id="bench/model",
        commit="0" * 40,
        config_json=(folder / "config.json").read_text(),
        remote_files=tuple(files),
        tensors=tuple(tensors),
    )
