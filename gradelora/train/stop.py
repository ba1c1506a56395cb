"""Seals where none is planned: training is told to stop, or has gone on for long without one."""

import time
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState


class Stop(TrainerCallback):
    """Training ends sealed at the first step after which rank 0 sees the file; `reached` then says where.

    After a step that ends `seal_every_s` after the last seal it is sealed and goes on.
    """

    def __init__(self, path: Path, seal_every_s: float) -> None:
        self.path, self.seal_every_s = path, seal_every_s
        self.reached: str | None = None
        self._sealed = time.monotonic()

    def on_save(self, *_: object, **__: object) -> None:
        """The clock of the next seal starts."""
        self._sealed = time.monotonic()

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Loading loses nothing that a seal would keep."""
        self._sealed = time.monotonic()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Rank 0 looks, all are told."""
        told: list[Literal["stop", "seal"] | None] = [None]
        if self.path.exists():
            told = ["stop"]
        elif time.monotonic() - self._sealed > self.seal_every_s:
            told = ["seal"]
        if dist.is_initialized():
            dist.broadcast_object_list(told, src=0)
        if told[0] is None or state.global_step >= state.max_steps:
            return
        control.should_save = True
        if told[0] == "stop":
            control.should_training_stop = True
            self.reached = f"training was cancelled; step {state.global_step} of {state.max_steps} is sealed"
