"""A stage that counts its runs, for tests of the store and of the child process."""

import os
import signal
import time
from pathlib import Path

from gradelora.artifacts import ASIDE, Artifact, Frozen
from gradelora.config import Runtime
from gradelora.errors import BadData

VERSION = 1


class ToyConfig(Frozen):
    word: str = "a"
    behaviour: str = "work"


class Toy(Artifact):
    length: int


def toy(config: ToyConfig, *, out: Path, runtime: Runtime) -> Toy:
    if config.behaviour == "refuse":
        raise BadData("data/x.json: empty; add answers")
    if config.behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.behaviour == "hang":
        (out / "started").write_text(str(os.getpid()))
        time.sleep(600)
    (out / "word.txt").write_text(config.word)
    (out / ASIDE).mkdir(exist_ok=True)
    (out / ASIDE / "when.txt").write_text(str(time.time_ns()))
    return Toy.collect(out, length=len(config.word))


def after(config: ToyConfig, before: Toy, *, out: Path, runtime: Runtime) -> Toy:
    text = (before.path / "word.txt").read_text() + config.word
    (out / "word.txt").write_text(text)
    return Toy.collect(out, length=len(text))
