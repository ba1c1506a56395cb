"""Stop at the last step that the budget allows, sealed."""

import time
from typing import Literal

import torch.distributed as dist
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from gradelora.artifacts import ASIDE, Frozen
from gradelora.child import write_whole
from gradelora.errors import BudgetReached
from gradelora.train.job import Job

PACE = "pace.json"
Part = Literal["step", "evaluation", "seal"]


class Pace(Frozen):
    """The longest that each part of training took, in seconds, over all attempts."""

    step: float = 0.0
    evaluation: float = 0.0
    seal: float = 0.0

    def next_s(self, *, evaluates: bool) -> float:
        """What one more step with its seal will take."""
        return self.step + self.seal + (self.evaluation if evaluates else 0.0)


class Budget(TrainerCallback):
    """Before each step rank 0 decides for all whether it, with its seal, still fits.

    `reached` says what was reached once training has stopped for it.  Raises BudgetReached
    where not one step fits.
    """

    def __init__(self, job: Job, budget_s: float) -> None:
        self.budget_s, self.spent_s, self.started = budget_s, job.spent_s, job.started
        self.path = job.out / ASIDE / PACE
        self.pace = Pace.model_validate_json(self.path.read_text()) if self.path.exists() else Pace()
        self.reached: str | None = None
        self._began = time.monotonic()

    def took(self, part: Part, seconds: float) -> None:
        """Remember the longest."""
        self.pace = self.pace.model_copy(update={part: max(seconds, getattr(self.pace, part))})

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        """Loading alone may have used it up."""
        if state.global_step < state.max_steps and (said := self._verdict(state)):
            raise BudgetReached(said)

    def on_step_begin(self, *_: object, **__: object) -> None:
        """The clock of one step starts."""
        self._began = time.monotonic()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop and seal where the next step would be one too many."""
        self.took("step", time.monotonic() - self._began)
        if state.global_step >= state.max_steps:
            return
        # This step's own evaluation and seal come after this call.
        due_s = (self.pace.evaluation if control.should_evaluate else 0.0) + (
            self.pace.seal if control.should_save else 0.0
        )
        self.reached = self._verdict(state, due_s)
        if self.reached:
            control.should_save = control.should_training_stop = True

    def on_save(self, _args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        """Keep the pace for the next attempt, which must know it before its first step."""
        if state.is_world_process_zero:
            write_whole(self.path, self.pace.model_dump_json())

    def _verdict(self, state: TrainerState, due_s: float = 0.0) -> str | None:
        """Rank 0's, told to all: why not even one more step fits after `due_s` seconds, or None."""
        spent_s = self.spent_s + time.monotonic() - self.started + due_s
        upcoming = state.global_step + 1
        evaluates = bool(state.eval_steps) and (upcoming % int(state.eval_steps) == 0 or upcoming == state.max_steps)
        next_s = self.pace.next_s(evaluates=evaluates)
        said: list[str | None] = [None]
        if spent_s + next_s > self.budget_s:
            rest_s = (state.max_steps - state.global_step) * self.pace.step
            said = [
                f"{spent_s / 3600:.4g} of {self.budget_s / 3600:.4g} hours are used up and one more step with its seal "
                f"takes up to {next_s:.3g} s; step {state.global_step} of {state.max_steps} is sealed, "
                f"the rest takes at most {rest_s / 3600:.3g} hours"
            ]
        if dist.is_initialized():
            dist.broadcast_object_list(said, src=0)
        return said[0]
