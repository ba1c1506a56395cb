"""Training on real answers, beside the tutorial's code and TRL's SFTTrainer: CPU-seconds.

    python -m bench.bench_peers [--shapes 0 1 2 3 4]

SciEntsBank answers and gpt-oss's tokenizer; the same ids, targets, order, LoRA, optimizer and
twelve answers a step for all, one thread, a process an arm, no dropout.  Equal losses at every
step prove that all did the same work.  What was mended in the tutorial's code to get there is
listed below the tables.

How much is won depends on two shares.  Logits at the targets alone save what the vocabulary takes
elsewhere: that share of a token's work is 11 % in gpt-oss-120b and most of it in any model with the
full 201,088 vocabulary that a CPU can train; and what the targets take themselves no arm can save.
Rows that share a question save the same share of the rest everywhere.  So five cases are measured:
the full vocabulary on a narrow model with the tutorial's target (the score and the end token), which is
judged; with ours (ten tokens: harmony's opening and a JSON object); with 3 answers a row, not 12; a
deeper model; and 120b's proportions, an eighth as wide, whose ratios come nearest to what is to be
expected there.  The judged figure is `train`: what `Trainer.train` takes, sealing a checkpoint
included for us, with experts dequantised as in the other arms.  Ends with 1 where an aim is missed.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.bench_encode import SHARED
from bench.peer_shapes import HIDDEN, LAYERS, QUESTIONS, SHAPES, VOCABULARY, Shape, chosen, head_share, prepare
from bench.peers import ARMS, OURS, PEERS, TRL_PLAIN, TUTORIAL

AIM_TUTORIAL, AIM_TRL = 15, 3
# Sums in another order, nothing more.
LOSS_TOLERANCE = 1e-3
MENDS = (
    "flash_attention_2, device_map, bf16 and DeepSpeed are left out: a CPU has none of them, or is slower with them",
    "map's function iterates over rows, not column names; every arm gets the same ids, the target encoded by itself",
    "DataCollatorForLanguageModeling copies input_ids over labels, so it trains on prompts: DataCollatorForSeq2Seq",
    "padding to the longest of the batch; the label of the end token stays (pad is another token in gpt-oss)",
    "given order instead of a random one, lora_dropout 0, one epoch: so that losses can be compared step by step",
    "no evaluation and no checkpoint within the run",
)


def run(arm: str, work: Path) -> dict[str, Any]:
    """One arm in a process of its own: CPU-seconds by phase, losses."""
    command = [sys.executable, "-m", "bench.peers", arm, str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm}: {done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two arms' losses at the same step."""
    return max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))


def show(found: dict[str, dict[str, Any]]) -> bool:
    """CPU-seconds by phase, how often ours fits into each; whether all losses are ours."""
    ours = found[OURS]
    table = Table("arm", "imports", "load", "train", "rest", "train / ours", "all but imports / ours",
                  "losses differ by", title="CPU-seconds (user + system)")  # fmt: skip
    for name, one in found.items():
        spent = one["cpu_s"]
        cells = [f"{spent[phase]:.1f}" for phase in ("imports", "load", "train", "rest")]
        ratio = spent["train"] / ours["cpu_s"]["train"]
        whole = work_of(one) / work_of(ours)
        table.add_row(name, *cells, f"{ratio:.1f}", f"{whole:.1f}", f"{apart(one, ours):.1e}")
    Console(width=150).print(table)
    first, last, steps = ours["losses"][0], ours["losses"][-1], len(ours["losses"])
    print(f"our loss from {first:.4f} to {last:.4f} in {steps} steps")
    same = max(apart(one, ours) for one in found.values())
    told = "held" if same <= LOSS_TOLERANCE else "missed"
    print(f"aim: losses of all arms within {LOSS_TOLERANCE:g} at every step: {told}, {same:.1e}")
    return same <= LOSS_TOLERANCE


def work_of(one: dict[str, Any]) -> float:
    """All that an arm did but importing."""
    return sum(seconds for phase, seconds in one["cpu_s"].items() if phase != "imports")


def judge(shape: Shape, found: dict[str, dict[str, Any]]) -> bool:
    """Whether the aims hold, where they were set for the shape; else the ratios alone are told."""
    spent = {name: one["cpu_s"]["train"] for name, one in found.items()}
    best = min((name for name in found if name.startswith("TRL")), key=lambda name: spent[name])
    held = True
    for aim, peer in ((AIM_TUTORIAL, TUTORIAL), (AIM_TRL, best)):
        ratio = spent[peer] / spent[OURS]
        if not shape.aimed:
            print(f"no aim, for comparison: {ratio:.1f}x {peer}")
            continue
        print(f"aim: at least {aim}x {peer}: {'held' if ratio >= aim else 'missed'}, {ratio:.1f}x")
        held &= ratio >= aim
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "scientsbank")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizer" / "gpt-oss")
    parser.add_argument("--shapes", type=int, nargs="+", choices=range(len(SHAPES)), default=[*range(len(SHAPES))])
    options = parser.parse_args()
    for path in (options.data, options.tokenizer):
        if not path.is_dir():
            # No failure: the other benchmarks go on where the real data is not at hand.
            print(f"skipped: {path} is not there; name the folders with --data and --tokenizer")
            return 0
    sys.path.insert(0, str(PEERS))
    if importlib.util.find_spec("trl") is None:
        print(f"skipped: TRL is not in {PEERS}; run `make bench`, or pip install --no-deps --target {PEERS} "
              "-r bench/requirements-peers.txt")  # fmt: skip
        return 0
    real = head_share(VOCABULARY, HIDDEN, LAYERS)
    items, held = chosen(options.data), True
    for shape in (SHAPES[number] for number in options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            tokens, targets = prepare(shape, items, options.tokenizer, Path(folder))
            print(f"\n{shape.name}: hidden {shape.hidden}, {shape.layers} layers, vocabulary {shape.vocabulary:,}")
            print(f"the vocabulary takes {shape.head_share:.0%} of a token's work ({real:.0%} at 120b)")
            print(f"{len(items)} answers to {QUESTIONS} questions, {tokens:,} tokens, {targets} of them targets",
                  flush=True)  # fmt: skip
            # Without its masking TRL only gets slower: once shown is enough.
            arms = [arm for arm in ARMS if shape.aimed or arm != TRL_PLAIN]
            found = {arm: run(arm, Path(folder)) for arm in arms}
        held &= show(found)
        held &= judge(shape, found)
    print("\nmended in the tutorial's code:", *MENDS, sep="\n  - ")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
