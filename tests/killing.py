"""Kill a training at random moments, again and again, until it ends: `bench/kill_training.py`, and a test.

One chain is one training.  Each of its moments starts the stage in a process of its own, waits
for a random point (while it loads, at a step, while a checkpoint is being written), kills one
rank, the launcher or everything, and looks at what is left.  The last start goes on undisturbed.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gradelora.artifacts import ASIDE, Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import TrainConfig
from gradelora.train import seals
from gradelora.train.job import Job
from tests.training import SAVED_EVERY, STEPS, progress, ranks_of, wait_for

STAGE = """
import sys
from pathlib import Path
from gradelora.artifacts import EncodedDataset, ModelSnapshot
from gradelora.train import train
from gradelora.config import TrainConfig
from tests.training import RUNTIME
config = TrainConfig.model_validate_json(sys.argv[1])
snapshot, data = ModelSnapshot.model_validate_json(sys.argv[2]), EncodedDataset.model_validate_json(sys.argv[3])
adapter = train(config, snapshot, data, out=Path(sys.argv[4]), runtime=RUNTIME)
Path(sys.argv[5]).write_text(adapter.model_dump_json())
"""
ROOT = Path(__file__).parents[1]
RANKS = 2
Point = Literal["loading", "step", "sealing"]
Victim = Literal["rank 0", "rank 1", "launcher", "everything"]
Damage = Literal["none", "manifest missing", "file missing", "file truncated"]
VICTIMS: tuple[Victim, ...] = ("rank 0", "rank 1", "launcher", "everything")
DAMAGES: tuple[Damage, ...] = ("manifest missing", "file missing", "file truncated")


@dataclass(frozen=True)
class Moment:
    """Where and whom; what was damaged afterwards; and what was found.

    `reached` is the last step that was trained, `sealed` the newest that is whole, `unsealed`
    whether a checkpoint was half written, `resumed` the step with which the next start began.
    """

    point: Point
    step: int
    delay_s: float
    victim: Victim
    damage: Damage = "none"
    reached: int = 0
    sealed: int = 0
    unsealed: bool = False
    resumed: int | None = None

    @property
    def lost(self) -> int:
        """Steps that had to be trained again."""
        return max(0, self.reached - self.sealed)


@dataclass(frozen=True)
class Chain:
    """One training: its settings, its moments and what came out."""

    config: TrainConfig
    moments: tuple[Moment, ...]
    adapter: Adapter


def faults(moments: Sequence[Moment]) -> list[str]:
    """What is wrong with these kills, or with what they can show; none where every start went on rightly."""
    found = [f"{m}: then began {m.resumed}" for m in moments if m.resumed not in (None, m.sealed + 1)]
    found += [
        f"{m}: {m.lost} steps lost, a checkpoint is due every {SAVED_EVERY}"
        for m in moments
        if m.damage == "none" and m.lost > SAVED_EVERY
    ]
    seen = sum(m.resumed is not None or m.sealed == STEPS for m in moments)
    if 2 * seen <= len(moments):
        found.append(f"only {seen} of {len(moments)} starts came to a step before the next kill")
    if not any(m.unsealed for m in moments):
        found.append("no kill left a checkpoint half written")
    return found


def kill_chains(
    snapshot: ModelSnapshot,
    data: EncodedDataset,
    folder: Path,
    *,
    configs: Sequence[TrainConfig],
    moments: int,
    a_chain: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Chain]:
    """`moments` kills in chains of `a_chain`, which take turns with `configs` of two ranks each.

    The same seed chooses the same victims and delays.
    """
    choose = random.Random(seed)
    for first, config in zip(range(0, moments, a_chain), itertools.cycle(configs), strict=False):
        out = folder / f"chain-{first}"
        done: list[Moment] = []
        for index in range(first, min(moments, first + a_chain)):
            moment = _choose(choose, index, done[-1].sealed if done else 0)
            before = _unsealed(out)
            moment = _kill(_start(config, snapshot, data, out), out, moment)
            moment = _look(out, replace(moment, unsealed=bool(_unsealed(out) - before)), choose)
            say(f"{index + 1}: {moment}")
            done = [*_resumed(done, out), moment]
        stage = _start(config, snapshot, data, out)
        if stage.wait(600) != 0:
            raise RuntimeError(f"{out}: undisturbed, the training did not end; see aside/ranks.log")
        adapter = Adapter.model_validate_json((out / ASIDE / "adapter.json").read_text())
        yield Chain(config, tuple(_resumed(done, out)), adapter)


def _choose(choose: random.Random, index: int, sealed: int) -> Moment:
    """Every victim as often as the others; a point that the training has still before it."""
    point: Point = choose.choices(("loading", "step", "sealing"), (1, 2, 2))[0]
    step = min(sealed + choose.randint(1, SAVED_EVERY + 1), STEPS)
    if point == "sealing":
        step = min((sealed // SAVED_EVERY + choose.randint(1, 2)) * SAVED_EVERY, STEPS)
    # A start takes seconds before its first step; a checkpoint of this size is written in tens of milliseconds.
    longest = {"loading": 5.0, "step": 0.2, "sealing": 0.02}[point]
    return Moment(point, step, round(choose.random() * longest, 4), VICTIMS[index % len(VICTIMS)])


def _start(config: TrainConfig, snapshot: ModelSnapshot, data: EncodedDataset, out: Path) -> "subprocess.Popen[bytes]":
    arguments = [part.model_dump_json() for part in (config, snapshot, data)]
    arguments += [str(out), str(out / ASIDE / "adapter.json")]
    (out / "aside").mkdir(parents=True, exist_ok=True)
    with (out / ASIDE / "starts").open("a") as starts:
        starts.write(f"{len(progress(out))}\n")
    with (out / ASIDE / "stage.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", STAGE, *arguments], stdout=log, stderr=log, cwd=ROOT)


def _kill(stage: "subprocess.Popen[bytes]", out: Path, moment: Moment) -> Moment:
    """Wait for the moment, kill, and wait until nothing of it lives."""
    before = len(progress(out))
    folder = seals.folder_of(out / seals.FOLDER, moment.step)

    def here() -> bool:
        if moment.point == "sealing":
            return folder.exists() and not (folder / seals.MANIFEST).exists()
        if moment.point == "step":
            return any(line["step"] >= moment.step for line in progress(out)[before:])
        return len(ranks_of(out)) >= 2

    ranks: list[int] = []
    while stage.poll() is None and not here():
        # The ranks' pids are looked up beforehand: a checkpoint is written faster than that.
        ranks = ranks if len(ranks) == RANKS else ranks_of(out)[-RANKS:]
        time.sleep(0.001 if moment.point == "sealing" else 0.01)
    time.sleep(moment.delay_s)
    for pid in _victims(stage, ranks if len(ranks) == RANKS else ranks_of(out)[-RANKS:], moment.victim):
        _sigkill(pid)
    stage.wait(120)
    if not wait_for(lambda: not ranks_of(out), 30):
        raise RuntimeError(f"{out}: ranks outlived {moment}")
    return moment


def _victims(stage: "subprocess.Popen[bytes]", ranks: list[int], victim: Victim) -> list[int]:
    if victim == "everything":
        return [stage.pid, *({_parent(rank) for rank in ranks} - {0}), *ranks]
    if not ranks:
        return [stage.pid]
    if victim == "launcher":
        return [_parent(ranks[0])]
    return [ranks[int(victim[-1])]]


def _parent(pid: int) -> int:
    """Pid of the parent; 0 where the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _sigkill(pid: int) -> None:
    """SIGKILL to a process that may have ended by now."""
    if pid > 1:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _look(out: Path, moment: Moment, choose: random.Random) -> Moment:
    """What the kill left; now and then the newest checkpoint is damaged on top."""
    whole = _whole(out)
    damage: Damage = "none"
    if len(whole) >= 2 and choose.random() < 0.5:
        damage = choose.choice(DAMAGES)
        newest = seals.folder_of(out / seals.FOLDER, whole.pop())
        if damage == "manifest missing":
            (newest / seals.MANIFEST).unlink()
        elif damage == "file missing":
            (newest / "rng_state_1.pth").unlink()
        else:
            os.truncate(newest / "trainer_state.json", 100)
    sealed = whole[-1] if whole else 0
    reached = max((int(line["step"]) for line in _since_start(out)), default=sealed)
    return replace(moment, damage=damage, reached=reached, sealed=sealed)


def _unsealed(out: Path) -> set[str]:
    """Checkpoints without a manifest."""
    return {f.name for f in (out / seals.FOLDER).glob("step-*") if not (f / seals.MANIFEST).exists()}


def _since_start(out: Path) -> list[dict[str, float]]:
    """What the latest start has told."""
    return progress(out)[int((out / ASIDE / "starts").read_text().split()[-1]) :]


def _whole(out: Path) -> list[int]:
    """Steps of the checkpoints that hold, ascending."""
    request = out / "aside" / "job.json"
    if not request.exists():
        return []
    identity = Job.model_validate_json(request.read_text()).identity
    folders = (out / seals.FOLDER).glob("step-*")
    return sorted(
        int(folder.name.removeprefix("step-"))
        for folder in folders
        if seals.fault(folder, world_size=RANKS, identity=identity) is None
    )


def _resumed(done: list[Moment], out: Path) -> list[Moment]:
    """The last moment with the step that the start after it began with, where it came to one."""
    if not done:
        return done
    lines = _since_start(out)
    return [*done[:-1], replace(done[-1], resumed=int(lines[0]["step"]) if lines else None)]
