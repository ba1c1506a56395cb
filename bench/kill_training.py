"""`python -m bench.kill_training --moments 20`: is a training that is killed at random the training that is not?

Two DeepSpeed ranks train a tiny gpt-oss, and are killed while they load, step or write a
checkpoint: one rank, the launcher, or everything at once; every other time the newest checkpoint
is damaged on top.  Each start must go on from the newest checkpoint that is whole, and the
adapter must be, byte for byte, the one of a training that nobody disturbed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from gradelora.train import train
from tests.killing import Moment, kill_chains
from tests.tiny_data import save_encoded, snapshot_of
from tests.tiny_models import save_gpt_oss
from tests.training import CONFIG, RUNTIME


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=4)
    parser.add_argument("--a-chain", type=int, default=4, help="kills of one training, before it may end")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        snapshot, data = snapshot_of(save_gpt_oss(folder / "model")), save_encoded(folder / "data")
        began = time.monotonic()
        undisturbed = train(CONFIG, snapshot, data, out=folder / "undisturbed", runtime=RUNTIME)
        print(f"undisturbed: {undisturbed.digest[:12]} in {time.monotonic() - began:.0f} s", flush=True)
        moments: list[Moment] = []
        same = True
        chains = kill_chains(
            snapshot, data, folder, moments=arguments.moments, a_chain=arguments.a_chain, seed=arguments.seed, say=say
        )
        for chain in chains:
            moments += chain.moments
            same &= chain.adapter.digest == undisturbed.digest
            print(f"killed {len(chain.moments)} times: {chain.adapter.digest[:12]}", flush=True)
    rightly = sum(m.resumed in (None, m.sealed + 1) for m in moments)
    print(f"{'point':10} {'victim':12} {'damage':18} {'reached':>7} {'whole':>5} {'then began':>10}")
    for m in moments:
        print(f"{m.point:10} {m.victim:12} {m.damage:18} {m.reached:7} {m.sealed:5} {m.resumed or '-':>10}")
    print(
        f"{len(moments)} kills, {sum(m.unsealed for m in moments)} of them while a checkpoint was half written; "
        f"went on from the newest whole checkpoint: {rightly} of {len(moments)}; "
        f"most steps trained again: {max((m.lost for m in moments), default=0)}; "
        f"adapters {'all equal to' if same else 'DIFFER from'} the undisturbed one"
    )
    return 0 if same and rightly == len(moments) else 1


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
