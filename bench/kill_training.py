"""`python -m bench.kill_training --moments 20`: is a training that is killed at random the training that is not?

Two DeepSpeed ranks train a tiny gpt-oss, one mode after the other, and are killed while they load,
step or write a checkpoint: one rank, the launcher, or everything at once; every other time the
newest checkpoint is damaged on top.  Each start must go on from the newest checkpoint that is
whole, and the adapter must be, byte for byte, the one of a training that nobody disturbed.  Ends
with exit code 1 where that fails, and where the kills show too little: none hit a checkpoint half
written, or most starts were killed before a step.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gradelora.train import train
from tests.killing import Moment, faults, kill_chains
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss
from tests.training import CONFIG, RUNTIME, changed

MODES = {
    "packed + zero2": CONFIG,
    "bf16 + zero3": changed(weights="bf16", parallel="zero3"),
    "packed + zero2 in bf16": changed(precision="bf16"),
    "packed + zero2 by the deepspeed launcher": changed(launcher="deepspeed"),
    "bf16 + zero3 in bf16": changed(weights="bf16", parallel="zero3", precision="bf16"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=4)
    parser.add_argument("--a-chain", type=int, default=4, help="kills of one training, before it may end")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments: list[Moment] = []
    found: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        snapshot, data = snapshot_of(save_gpt_oss(folder / "model")), save_encoded(folder / "data")
        chains = kill_chains(
            snapshot,
            data,
            folder,
            configs=tuple(MODES.values()),
            moments=arguments.moments,
            a_chain=arguments.a_chain,
            seed=arguments.seed,
            say=say,
        )
        for number, chain in enumerate(chains):
            mode = next(name for name, config in MODES.items() if config == chain.config)
            undisturbed = train(chain.config, snapshot, data, out=folder / f"undisturbed-{number}", runtime=RUNTIME)
            moments += chain.moments
            digests = f"{chain.adapter.digest[:12]}, undisturbed {undisturbed.digest[:12]}"
            say(f"{mode}, killed {len(chain.moments)} times: {digests}")
            if chain.adapter.digest != undisturbed.digest:
                found.append(f"{mode}: another adapter, {digests}")
    found += faults(moments)
    show(moments)
    for fault in found:
        say(f"FAULT: {fault}")
    return 1 if found else 0


def show(moments: Sequence[Moment]) -> None:
    print(f"{'point':10} {'victim':12} {'damage':18} {'reached':>7} {'whole':>5} {'then began':>10}")
    for m in moments:
        print(f"{m.point:10} {m.victim:12} {m.damage:18} {m.reached:7} {m.sealed:5} {m.resumed or '-':>10}")
    print(
        f"{len(moments)} kills, {sum(m.unsealed for m in moments)} of them while a checkpoint was half written; "
        f"{sum(m.resumed is not None for m in moments)} starts came to a step, "
        f"{sum(m.resumed == m.sealed + 1 for m in moments)} right after the newest whole checkpoint; "
        f"most steps trained again: {max((m.lost for m in moments), default=0)}"
    )


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
