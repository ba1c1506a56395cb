"""What bench_peers trains: models of several shapes, and the same real answers for every arm."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.bench_encode import scientsbank, write_items
from bench.peers import LEARNING_RATE, STEP, WARMUP
from gradelora.artifacts import EncodedDataset
from gradelora.config import EncodeConfig, LoraSettings, TrainConfig

VOCABULARY, HIDDEN, LAYERS = 201_088, 2880, 36
PAD = 199_999
QUESTIONS, ANSWERS = 2, 24


@dataclass(frozen=True)
class Shape:
    """A gpt-oss with random weights; intermediate size, heads and experts a token in 120b's proportions.

    `target`: json is ours, harmony's opening and a JSON object; score is the tutorial's, the score
    and the end token.  `aimed`: the aims were set for it.  `row`: answers in a row of ours, where
    STEP answers make an optimizer step in every arm.
    """

    name: str
    vocabulary: int
    hidden: int
    layers: int
    experts: int
    target: Literal["json", "score"] = "json"
    aimed: bool = False
    row: int = STEP

    @property
    def config(self) -> dict[str, Any]:
        """What its config.json says."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 32,
            "num_key_value_heads": max(1, self.hidden // 256),
            "head_dim": 32,
            "num_local_experts": self.experts,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "initializer_range": 0.05,
            "pad_token_id": PAD % self.vocabulary,
        }

    @property
    def head_share(self) -> float:
        """The share of a token's multiplications that the vocabulary takes."""
        return head_share(self.vocabulary, self.hidden, self.layers)


def head_share(vocabulary: int, hidden: int, layers: int) -> float:
    """lm_head beside 4 experts, queries and output (sqrt 2 wide each), keys and values (a sixth each), roughly."""
    layer = (4 * 3 + 2 * 2**0.5 + 2 / 6) * hidden
    return vocabulary / (vocabulary + layers * layer)


SHAPES = (
    Shape("full vocabulary, 4 narrow layers, the tutorial's target", VOCABULARY, 256, 4, 16, "score", aimed=True),
    Shape("full vocabulary, 4 narrow layers, our target", VOCABULARY, 256, 4, 16),
    Shape("full vocabulary, 24 layers", VOCABULARY, 384, 24, 8),
    Shape("full vocabulary, 4 narrow layers, 3 answers a row as h200 has", VOCABULARY, 256, 4, 16, row=3),
    # The vocabulary shrinks with the width, so that it takes what it takes at 120b.
    Shape("120b's proportions, an eighth as wide", VOCABULARY // 8, 384, 36, 8),
)


def chosen(folder: Path) -> list[dict[str, Any]]:
    """The first ANSWERS training answers of each of the first QUESTIONS questions that have as many."""
    by_question: dict[str, list[dict[str, Any]]] = {}
    for item in scientsbank(folder):
        if item["split"] == "train":
            by_question.setdefault(item["question_key"], []).append(item)
    full = [found[:ANSWERS] for found in by_question.values() if len(found) >= ANSWERS]
    return [item for found in full[:QUESTIONS] for item in found]


def rewritten(
    data: EncodedDataset, folder: Path, shape: Shape, score_ids: Callable[[float], list[int]]
) -> EncodedDataset:
    """The same prompts with the shape's target, and ids numbered anew by first use where its vocabulary is smaller."""
    from datasets import load_from_disk

    number: dict[int, int] = {}
    compact = shape.vocabulary < VOCABULARY

    def row(ids: list[int], prompt: int, score: float) -> list[int]:
        if shape.target == "score":
            ids = [*ids[:prompt], *score_ids(score), ids[-1]]
        return [number.setdefault(token, len(number)) for token in ids] if compact else ids

    for split, count in data.splits.model_dump().items():
        if not count:
            shutil.copytree(data.path / split, folder / split)
            continue
        rows = load_from_disk(str(data.path / split))
        columns = zip(rows["input_ids"], rows["prompt_length"], rows["score"], strict=True)
        ids, kind = [row(*each) for each in columns], rows.features["input_ids"]
        rows.remove_columns("input_ids").add_column("input_ids", ids, feature=kind).save_to_disk(str(folder / split))
    pad = PAD % shape.vocabulary
    assert len(number) <= pad, f"{len(number)} ids do not fit below {pad}"
    facts = data.model_dump(exclude={"path", "files", "digest"}) | {"pad_token_id": pad}
    return EncodedDataset.collect(folder, **facts)


def prepare(shape: Shape, items: list[dict[str, Any]], tokenizer: Path, work: Path) -> tuple[int, int]:
    """Models, our job and the peers' rows in `work`; how many tokens separate rows have, how many are targets."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from gradelora.encode.folder import write_folder
    from gradelora.prompt import load_layout
    from gradelora.train.setup import plans

    save_models(shape, work)
    words = AutoTokenizer.from_pretrained(tokenizer)
    # The peers pad with what the tokenizer names.
    words.pad_token = words.convert_ids_to_tokens(PAD % shape.vocabulary)
    words.save_pretrained(work / "dense")
    config = EncodeConfig(layout="harmony", max_length=512)
    write_items(items, work / "items.arrow", len(items))
    data = write_folder(work / "items.arrow", load_layout(tokenizer, config), config, work / "data")
    score_ids = lambda score: words.encode(f"{score:g}", add_special_tokens=False)  # noqa: E731
    job = save_job(work, rewritten(data, work / "rewritten", shape, score_ids), shape.row)
    plan = plans(job)
    order = [item for (micro,) in plan.schedule.of_rank(0) for item in micro]
    assert sorted(order) == list(range(len(items))), "every answer is seen once"
    rows = []
    for item in order:
        ids, target = plan.items.tokens(item), plan.items.target(item)
        labels = [-100] * (len(ids) - len(target)) + target
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    Dataset.from_list(rows).save_to_disk(str(work / "rows"))
    return sum(len(row["input_ids"]) for row in rows), sum(label != -100 for row in rows for label in row["labels"])


def save_models(shape: Shape, work: Path) -> None:
    """The MXFP4 checkpoint for us, the same weights in bf16 for the peers."""
    import torch
    from transformers import GptOssForCausalLM

    from gradelora.model.load import load_base
    from tests.tiny_models import save_gpt_oss

    packed = save_gpt_oss(work / "packed", **shape.config)
    dense = load_base(packed, weights="bf16", precision="bf16", device="cpu")
    assert isinstance(dense, GptOssForCausalLM)
    dense.to(torch.bfloat16).save_pretrained(work / "dense")


def save_job(work: Path, data: EncodedDataset, row: int) -> Any:
    """Our training as its launcher would tell it to one process; returned as written."""
    from gradelora.train.job import Job

    train = TrainConfig(
        device="cpu",
        precision="fp32",
        parallel="layers",
        processes=1,
        lora=LoraSettings(dropout=0.0),
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        epochs=1,
        answers_per_row=row,
        accumulation=STEP // row,
        save_every=1,
    )
    job = Job(
        config=train,
        snapshot=work / "packed",
        repo_id="bench/model",
        commit="0" * 40,
        data=data,
        out=work / "out",
        dataloader_workers=0,
        evaluate_rows=1,
        budget_s=None,
        spent_s=0,
        started=0,
        report_to=(),
        launcher_pid=os.getpid(),
    )
    (work / "job.json").write_text(job.model_dump_json())
    return job
