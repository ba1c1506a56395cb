"""Validation's cost by size, and what a random split would leak.

    python bench/bench_validate.py                        1e4, 1e5 and 1e6 generated items, then SciEntsBank's leak
    python bench/bench_validate.py --leak data/*.json     leak of both splits on real files

Every size runs in a process of its own.  CPU seconds are user and system time without the
imports, which every run pays once; memory is the process's peak.  "fixed" is what Great
Expectations costs whatever the size, as the line through the smallest and the largest size
tells; beyond it the time an item must stay the same for the growth to be linear.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (  # noqa: SIM905
    "the water evaporated and left salt crystals behind because heat from sun made it turn into vapor while "
    "solid particles stayed in dish when we poured mixture through filter sand was caught but liquid passed "
    "energy moves current circuit battery light bulb wire closed open plant seed root leaf grows soil"
).split()
ITEMS_A_RECORD = 4
SCIENTSBANK = Path(__file__).resolve().parents[2] / "shared" / "data" / "scientsbank"


def write_sample(path: Path, items: int, seed: int = 0) -> None:
    """A file in the user's format: 500 questions with rubrics, answers of 5 to 25 words."""
    rng = random.Random(seed)
    asked = [f"Question {n}: " + " ".join(rng.choices(WORDS, k=20)) + "?" for n in range(500)]
    rubrics = ["2 points for " + " ".join(rng.choices(WORDS, k=30)) for _ in range(500)]
    with path.open("w") as file:
        file.write("[")
        for number in range(0, items, ITEMS_A_RECORD):
            aligned = []
            for _ in range(min(ITEMS_A_RECORD, items - number)):
                q = rng.randrange(500)
                answer = " ".join(rng.choices(WORDS, k=rng.randint(5, 25)))
                score = rng.choice((0, 1, 2))
                aligned.append(
                    {"question": asked[q], "answer": answer, "score": score, "max_score": 2, "rubric": rubrics[q]}
                )
            total, top = sum(i["score"] for i in aligned), 2 * len(aligned)
            record = {"score": total, "max_score": top, "normalized_score": round(total / top, 2)}
            record |= {"rubric_alignment": aligned, "feedback": "Read the rubric again."}
            file.write((",\n" if number else "\n") + json.dumps(record))
        file.write("\n]\n")


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(path: Path, out: Path) -> dict[str, float]:
    """Validate one file in this process; the imports are paid before the clock starts."""
    import great_expectations  # noqa: F401
    import pandas  # noqa: F401

    import gradelora.validate.examination  # noqa: F401
    from gradelora.config import Runtime, ValidateConfig
    from gradelora.records import collect_data_files
    from gradelora.validate import validate

    imports, data = cpu_seconds(), collect_data_files((str(path),))
    started, clock = cpu_seconds(), time.monotonic()
    result = validate(ValidateConfig(), data, out=out, runtime=Runtime())
    return {
        "items": result.items,
        "imports_s": imports,
        "cpu_s": cpu_seconds() - started,
        "wall_s": time.monotonic() - clock,
        "rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "file_bytes": path.stat().st_size,
    }


def table(sizes: list[int]) -> None:
    """One line a size, then how the time grows."""
    print(
        f"{'items':>9} {'file MB':>8} {'CPU-s':>7} {'items/CPU-s':>12} {'us/item':>8} {'peak MB':>8} {'imports s':>9}"
    )
    measured = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-validate-") as folder:
            path, out = Path(folder) / "sample.json", Path(folder) / "out"
            write_sample(path, size)
            out.mkdir()
            call = [sys.executable, __file__, "--measure", str(path), "--out", str(out)]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            m = json.loads(done.stdout.splitlines()[-1])
        measured.append(m)
        print(
            f"{m['items']:>9,} {m['file_bytes'] / 1e6:>8.1f} {m['cpu_s']:>7.2f} {m['items'] / m['cpu_s']:>12,.0f}"
            f" {1e6 * m['cpu_s'] / m['items']:>8.2f} {m['rss_bytes'] / 1e6:>8.0f} {m['imports_s']:>9.1f}",
            flush=True,
        )
    if len(measured) > 1:
        low, high = measured[0], measured[-1]
        each = (high["cpu_s"] - low["cpu_s"]) / (high["items"] - low["items"])
        fixed = low["cpu_s"] - each * low["items"]
        beyond = ", ".join(f"{1e6 * (m['cpu_s'] - fixed) / m['items']:.2f} at {m['items']:,}" for m in measured)
        print(f"fixed {fixed:.2f} CPU-s; us/item beyond it: {beyond}")


def leak(patterns: list[str], seeds: int = 5) -> None:
    """Held-out items whose answer to the same question also stands in training, by split."""
    import numpy as np
    import pyarrow as pa

    from gradelora.config import SplitConfig
    from gradelora.records import collect_data_files
    from gradelora.records.identity import answer_hashes, question_keys, questions
    from gradelora.records.read import read_files
    from gradelora.records.split import TRAIN, VALIDATION, Deciding, answer_groups, assign, named_sides, withheld

    tables = read_files(collect_data_files(tuple(patterns)), 2**31)
    items = tables.items.table
    asked, hashes = questions(items), answer_hashes(items["answer"])
    kinds = {"same answer": hashes.exact, "near-duplicate": hashes.bag}
    print(
        f"{len(items):,} items, {seeds} seeds, 10 % held out\n{'split':>16} {'held out':>9} {'withheld':>9} "
        + " ".join(f"{kind + ' leaked':>22}" for kind in kinds)
    )
    keys = question_keys(items, asked.of_item)
    # Real sets seldom tell who wrote what: four neighbours are one made-up student.
    students = pa.chunked_array([pa.array([f"s-{n // 4}" for n in range(len(items))]).dictionary_encode()])
    nobody = pa.chunked_array([pa.nulls(len(items), pa.string()).dictionary_encode()])
    official = {"unseen_answers_files": ("*unseen_answers*",), "unseen_questions_files": ("*unseen_questions*",)}
    names = [f.name for f in tables.files]
    arms: dict[str, tuple[pa.ChunkedArray, dict]] = {"by answer": (nobody, {}), "by student": (students, {})}
    if any("unseen_answers" in n for n in names) and any("unseen_questions" in n for n in names):
        arms["official files"] = (nobody, official)
    for name in ("random", *arms):
        held_out, out_of_use, leaked = 0, 0, dict.fromkeys(kinds, 0)
        for seed in range(seeds):
            aside = np.zeros(len(items), bool)
            if name == "random":
                out = np.random.default_rng(seed).random(len(items)) < 0.1
            else:
                student, files = arms[name]
                config = SplitConfig(seed=seed, unseen_answers_share=0.1, validation_share=0, **files)
                named = named_sides(config, names)[items["file"].to_numpy()]
                sides = assign(config, Deciding(keys, asked.of_item, hashes.bag, student, named))
                out, aside = ~np.isin(sides, (TRAIN, VALIDATION)), withheld(sides, asked.of_item, hashes.bag)
            held_out += int(out.sum())
            out_of_use += int(aside.sum())
            for kind, values in kinds.items():
                group = answer_groups(asked.of_item, values)
                leaked[kind] += int(np.isin(group[out & ~aside], group[~out & ~aside]).sum())
        told = " ".join(f"{n:>13,} ({n / held_out:6.2%})" for n in leaked.values())
        print(f"{name:>16} {held_out:>9,} {out_of_use:>9,} {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--leak", nargs="+", metavar="PATH")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.out)))
    elif arguments.leak:
        leak(arguments.leak)
    else:
        table(arguments.sizes)
        if real := sorted(map(str, SCIENTSBANK.glob("t*.json"))):
            print()
            leak(real)
        else:
            print(f"no leak shown: {SCIENTSBANK} is not there; name real files with --leak")


if __name__ == "__main__":
    main()
