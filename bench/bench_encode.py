"""Records to tokens, side by side: the tutorial's code, datasets.map, raw encode_batch_fast, the encode stage.

    python bench/bench_encode.py [--rounds 3] [--sizes 10000 100000 1000000]

Real SciEntsBank items with the real tokenizer of gpt-oss; every arm encodes the same text.
The arms take turns, each round in another order; a figure is records per CPU-second, all
threads counted, median of the rounds.  Loading the tokenizer is counted nowhere.  Then the
stage runs on 10,000 to 1,000,000 items, a child process each, and prints time and memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPLIT_OF = {
    "train_1": "train",
    "test_unseen_answers_1": "unseen_answers",
    "test_unseen_questions_1": "unseen_questions",
}
# One thread each: CPU-seconds are compared, and no arm shall pay for waiting threads.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def scientsbank(folder: Path) -> list[dict[str, Any]]:
    """Every graded answer, with the reference answers as its rubric."""
    references = {
        entry["question"]: " / ".join(entry["reference"])
        for entry in json.loads((folder / "questions.json").read_text()).values()
    }
    items = []
    for name, split in SPLIT_OF.items():
        for number, record in enumerate(json.loads((folder / f"{name}.json").read_text())):
            for index, item in enumerate(record["rubric_alignment"]):
                ids = {"item_id": f"{name}:{number}:{index}", "record_id": f"{name}:{number}"}
                question = {"question": item["question"], "rubric": references.get(item["question"])}
                scores = {"score": float(item["score"]), "max_score": float(item["max_score"])}
                items.append(ids | question | scores | {"answer": item["answer"], "split": split})
    keys = {question: f"{number:016x}" for number, question in enumerate(sorted({i["question"] for i in items}))}
    return [item | {"question_key": keys[item["question"]]} for item in items]


def write_items(items: list[dict[str, Any]], path: Path, count: int) -> None:
    """items.arrow of `count` items, repeating as needed; every repeat's answers differ by a number."""
    import pyarrow as pa

    texts = (
        "item_id",
        "record_id",
        "question",
        "answer",
        "rubric",
        "question_key",
        "student_id",
        "group",
        "feedback",
        "split",
    )
    numbers = ("score", "max_score", "rater2_score")
    schema = pa.schema([*((name, pa.string()) for name in texts), *((name, pa.float64()) for name in numbers)])
    with pa.ipc.new_file(str(path), schema) as file:
        for start in range(0, count, len(items)):
            turn = [{**i, "answer": f"{i['answer']} {start}"} for i in items] if start else items
            file.write_batch(pa.RecordBatch.from_pylist(turn[: count - start], schema=schema))


def texts_of(items: list[dict[str, Any]], layout: Any) -> list[dict[str, Any]]:
    """The same conversation as strings, for the arms that encode text."""
    from gradelora.prompt.layout import user_text

    opening, closing = layout.text.decode(layout.opening), layout.text.decode(layout.closing)
    channel = layout.text.decode(layout.target_opening)
    return [
        {
            "prompt": opening + user_text(i["question"], i["rubric"], i["max_score"]) + i["answer"].strip() + closing,
            "label": f'{channel}{{"score": {i["score"]:g}}}',
        }
        for i in items
    ]


def tutorial_arm(tokenizer: Any, rows: Any) -> None:
    """reference tutorial's preprocess_function, mended only so far that it runs: rows, not column names."""

    def preprocess_function(examples: dict[str, list[str]]) -> dict[str, Any]:
        prompts, labels = [], []
        for prompt, label in zip(examples["prompt"], examples["label"], strict=True):
            enc = tokenizer(prompt + str(label), truncation=True, max_length=512, padding=False)
            prompt_enc = tokenizer(prompt, truncation=True, max_length=512)
            prompt_len = len(prompt_enc["input_ids"])
            labels_list = [-100] * prompt_len + enc["input_ids"][prompt_len:] + [tokenizer.eos_token_id]
            input_ids = enc["input_ids"] + [tokenizer.eos_token_id]
            if len(input_ids) > 512:
                input_ids, labels_list = input_ids[-512:], labels_list[-512:]
            prompts.append(input_ids)
            labels.append(labels_list)
        return {"input_ids": prompts, "labels": labels, "attention_mask": [[1] * len(ids) for ids in prompts]}

    rows.map(preprocess_function, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)


def map_arm(tokenizer: Any, rows: Any) -> None:
    """datasets.map with the fast tokenizer on whole batches, ids alone: as good as that way gets."""

    def encode(examples: dict[str, list[str]]) -> dict[str, Any]:
        whole = [p + label for p, label in zip(examples["prompt"], examples["label"], strict=True)]
        return {"input_ids": tokenizer(whole, add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    rows.map(encode, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)


def raw_arm(tokenizer: Any, texts: list[dict[str, Any]]) -> None:
    """tokenizers.encode_batch_fast on whole texts, nothing written."""
    whole = [text["prompt"] + text["label"] for text in texts]
    for start in range(0, len(whole), 4096):
        for encoding in tokenizer.encode_batch_fast(whole[start : start + 4096], add_special_tokens=False):
            _ = encoding.ids


def stage_arm(layout: Any, config: Any, items: Path) -> None:
    """The encode stage, Arrow, candidates and digest included."""
    from gradelora.encode.folder import write_folder

    with tempfile.TemporaryDirectory() as out:
        write_folder(items, layout, config, Path(out))


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(items: list[dict[str, Any]], tokenizer_folder: Path, work: Path, rounds: int) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    from gradelora.config import EncodeConfig
    from gradelora.prompt import load_layout

    datasets.disable_progress_bars()
    config = EncodeConfig(layout="harmony", max_length=512)
    layout = load_layout(tokenizer_folder, config)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    texts = texts_of(items, layout)
    datasets.Dataset.from_list(texts).save_to_disk(str(work / "texts"))
    rows = datasets.load_from_disk(str(work / "texts"))
    write_items(items, work / "items.arrow", len(items))
    arms: dict[str, Callable[[], None]] = {
        "tutorial": lambda: tutorial_arm(tokenizer, rows),
        "datasets.map": lambda: map_arm(tokenizer, rows),
        "encode_batch_fast": lambda: raw_arm(tokenizer.backend_tokenizer, texts),
        "gradelora encode": lambda: stage_arm(layout, config, work / "items.arrow"),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rates[name].append(len(items) / cpu_seconds(arms[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(items):,} items of SciEntsBank, {rounds} rounds, median (lowest to highest)")
    print(f"{'':20}{'records per CPU-s':>30}{'x tutorial':>12}{'x map':>8}")
    for name, rate in medians.items():
        spread = f"{rate:,.0f} ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})"
        print(f"{name:20}{spread:>30}{rate / medians['tutorial']:>12.1f}{rate / medians['datasets.map']:>8.1f}")


SCALE = """
import sys, time, tempfile
from pathlib import Path
from gradelora.config import EncodeConfig
from gradelora.encode.folder import write_folder
from gradelora.prompt import load_layout
config = EncodeConfig(layout="harmony", max_length=512)
layout = load_layout(Path(sys.argv[2]), config)
# Not ru_maxrss: it begins with what the parent held.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before, started = peak(), time.process_time()
with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as out:
    made = write_folder(Path(sys.argv[1]), layout, config, Path(out))
    print(sum(made.splits.model_dump().values()), time.process_time() - started, before, peak(), made.total_bytes)
"""


def scale(items: list[dict[str, Any]], tokenizer_folder: Path, work: Path, sizes: list[int]) -> None:
    """Time must grow as the items do, memory beyond the tokenizer's not at all."""
    columns = ("items", "CPU-s", "per CPU-s", "peak MB", "of it tokenizer", "MB written")
    print("\n" + "".join(f"{name:>16}" for name in columns))
    for count in sizes:
        write_items(items, work / "scale.arrow", count)
        command = [sys.executable, "-c", SCALE, str(work / "scale.arrow"), str(tokenizer_folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows, seconds, before, peak, written = (float(value) for value in done.stdout.split())
        cells = (f"{rows:,.0f}", f"{seconds:.1f}", f"{rows / seconds:,.0f}", f"{peak:.0f}", f"{before:.0f}")
        print("".join(f"{cell:>16}" for cell in (*cells, f"{written / 1e6:,.0f}")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "scientsbank")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizer" / "gpt-oss")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    for path in (arguments.data, arguments.tokenizer):
        if not path.is_dir():
            # No failure: the other benchmarks go on where the real data is not at hand.
            print(f"skipped: {path} is not there; name the folders with --data and --tokenizer")
            return 0
    items = scientsbank(arguments.data)
    with tempfile.TemporaryDirectory() as work:
        compare(items, arguments.tokenizer, Path(work), arguments.rounds)
        if arguments.sizes:
            scale(items, arguments.tokenizer, Path(work), arguments.sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
