"""A small EncodedDataset, written by hand."""

import json
import random
from pathlib import Path

from datasets import Dataset, Features, List, Value

from gradelora.artifacts import EncodedDataset, ModelSnapshot, SplitCounts

END = 3
CANDIDATES = {
    "max_score": 3.0,
    "step": 1.0,
    "scores": [0.0, 1.0, 2.0, 3.0],
    "targets": [[4 + score, END] for score in range(4)],
}
FEATURES = Features(
    {
        "item_id": Value("string"),
        "record_id": Value("string"),
        "question_key": Value("string"),
        "input_ids": List(Value("int32")),
        "prefix_length": Value("int32"),
        "prompt_length": Value("int32"),
        "score": Value("float64"),
        "max_score": Value("float64"),
        "rater2_score": Value("float64"),
        "student_id": Value("string"),
        "group": Value("string"),
    }
)


def save_encoded(
    folder: Path, *, questions: int = 4, answers: int = 9, validation: int = 2, seed: int = 0
) -> EncodedDataset:
    """Questions with `answers` train and `validation` validation items each; ids lie in 4..127."""
    choose = random.Random(seed)
    rows: dict[str, list[dict[str, object]]] = {
        "train": [],
        "validation": [],
        "unseen_answers": [],
        "unseen_questions": [],
    }
    for question in range(questions):
        prefix = [choose.randrange(10, 120) for _ in range(choose.randrange(15, 40))]
        for answer in range(answers + validation):
            split = "train" if answer < answers else "validation"
            score = choose.randrange(4)
            body = [choose.randrange(10, 120) for _ in range(choose.randrange(3, 12))] + [100 + score]
            prompt = [*prefix, *body, 8, 9]
            rows[split].append(
                {
                    "item_id": f"f:{question}:{answer}",
                    "record_id": f"f:{question}",
                    "question_key": f"{question:016x}",
                    "input_ids": [*prompt, 4 + score, END],
                    "prefix_length": len(prefix),
                    "prompt_length": len(prompt),
                    "score": float(score),
                    "max_score": 3.0,
                    "rater2_score": None,
                    "student_id": None,
                    "group": None,
                }
            )
    for split, items in rows.items():
        columns = {name: [item[name] for item in items] for name in FEATURES}
        Dataset.from_dict(columns, features=FEATURES).save_to_disk(folder / split, num_shards=1)
    (folder / "candidates.json").write_text(json.dumps({f"{q:016x}": CANDIDATES for q in range(questions)}))
    lengths = [len(item["input_ids"]) for items in rows.values() for item in items]  # type: ignore[arg-type]
    return EncodedDataset.collect(
        folder,
        layout="test",
        splits=SplitCounts(**{split: len(items) for split, items in rows.items()}),
        tokens=sum(lengths),
        longest=max(lengths),
        pad_token_id=0,
    )


def snapshot_of(folder: Path) -> ModelSnapshot:
    """A saved model as the fetch stage hands it on."""
    return ModelSnapshot.collect(folder, repo_id="tiny/gpt-oss", commit="0" * 40)
