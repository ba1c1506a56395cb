"""A stage that seals a checkpoint a step and goes on from the newest, for tests of the mirror."""

import time
from pathlib import Path

from gradelora.artifacts import Artifact, Frozen
from gradelora.config import Runtime
from gradelora.errors import RankLost
from gradelora.train import seals

VERSION = 1
RESUMES = True


class CountConfig(Frozen):
    steps: int = 5


class Counted(Artifact):
    steps: int


DIES_AT: list[int] = []
BEGAN_AT: list[int] = []
STEP_S = [0.0]


def count(config: CountConfig, *, out: Path, runtime: Runtime) -> Counted:
    root = out / seals.FOLDER
    newest = seals.newest(root, world_size=1, identity="count")
    done = int((newest / "state" / "sum.txt").read_text()) if newest else 0
    BEGAN_AT.append(done)
    for step in range(done + 1, config.steps + 1):
        folder = seals.folder_of(root, step)
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "sum.txt").write_text(str(step))
        seals.seal(folder, step=step, world_size=1, identity="count")
        seals.prune(root, 1)
        time.sleep(STEP_S[0])
        if step in DIES_AT:
            raise RankLost("killed")
    (out / "sum.txt").write_text(str(config.steps))
    return Counted.collect(out, steps=config.steps)
