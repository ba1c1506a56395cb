"""A gpt-oss with random weights and answers of random tokens, written in a second: something to train on the spot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradelora.artifacts import SPLITS, BaseModel, EncodedDataset, ModelSnapshot, SplitCounts, TensorInfo
from gradelora.calibration import Device
from gradelora.encode.dataset import SCHEMA, SplitWriter
from gradelora.merge.checkpoint import header_of
from gradelora.preflight.known import UNRESOLVED, describe

REPO_ID = "gradelora/synthetic-gpt-oss"
TARGET_TOKENS = 4
# Tokens of a question and of an answer to it: a step of short rows tells the fixed part of a step,
# a step with a long one what grows with it.
SHORT, LONG = (32, 16), (256, 96)
ANSWERS = 4
COMMON: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "dtype": "bfloat16",
    "num_hidden_layers": 2,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "head_dim": 64,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "quantization_config": {"quant_method": "mxfp4"},
}
# A GPU gets layers as wide as gpt-oss-120b's, a CPU some that it computes in a second.
SHAPES: dict[Device, dict[str, Any]] = {
    "cuda": {
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32_768,
    },
    "cpu": {
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
}


def save_model(folder: Path, device: Device) -> tuple[BaseModel, ModelSnapshot]:
    """A checkpoint in the form of openai/gpt-oss-120b: MXFP4 experts, bf16 else, one file; and its description."""
    config = COMMON | SHAPES[device]
    base = describe(REPO_ID, config)
    folder.mkdir(parents=True)
    header, _ = header_of([(tensor.name, tensor.dtype, tensor.shape) for tensor in base.tensors])
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for tensor in base.tensors:
            file.write(_values(tensor, random))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    snapshot = ModelSnapshot.collect(folder, repo_id=REPO_ID, commit=UNRESOLVED)
    return base, snapshot


def _values(tensor: TensorInfo, random: np.random.Generator) -> bytes:
    if tensor.name.endswith("_scales"):
        # 2 ** -7 to 2 ** -5: weights as large as those of a trained layer.
        return random.integers(120, 123, tensor.nbytes, dtype=np.uint8).tobytes()
    if tensor.dtype == "U8":
        return random.bytes(tensor.nbytes)
    count = tensor.nbytes // 2
    if len(tensor.shape) == 1:
        values = np.full(count, float("norm" in tensor.name), dtype=np.float32)
    else:
        values = 0.02 * random.standard_normal(count, dtype=np.float32)
    # The upper half of a float32 is a bfloat16.
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def save_answers(folder: Path, device: Device, questions: int) -> EncodedDataset:
    """`questions` questions of ANSWERS answers each, every fifth of them LONG, all in the train split."""
    random = np.random.default_rng(0)
    vocabulary = SHAPES[device]["vocab_size"]
    writers = {split: SplitWriter(folder / split, split) for split in SPLITS}
    rows: list[dict[str, Any]] = []
    for question in range(questions):
        prefix, answer = LONG if question % 5 == 0 else SHORT
        shared = random.integers(10, vocabulary, prefix).tolist()
        for number in range(ANSWERS):
            ids = [*shared, *random.integers(10, vocabulary, answer).tolist()]
            rows.append(_row(question, number, ids, prefix))
    writers["train"].write(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    for writer in writers.values():
        writer.close()
    (folder / "candidates.json").write_text("{}", encoding="utf-8")
    longest = max(len(row["input_ids"]) for row in rows)
    return EncodedDataset.collect(
        folder,
        layout="synthetic",
        splits=SplitCounts(train=len(rows), validation=0, unseen_answers=0, unseen_questions=0),
        tokens=sum(len(row["input_ids"]) for row in rows),
        longest=longest,
        pad_token_id=0,
    )


def _row(question: int, number: int, ids: list[int], prefix: int) -> dict[str, Any]:
    return {
        "item_id": f"{question}:{number}",
        "record_id": str(question),
        "question_key": f"{question:016x}",
        "input_ids": ids,
        "prefix_length": prefix,
        "prompt_length": len(ids) - TARGET_TOKENS,
        "score": 1.0,
        "max_score": 3.0,
        "rater2_score": None,
        "group": None,
    }
