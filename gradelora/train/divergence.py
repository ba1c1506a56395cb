"""A training whose figures are no numbers any more ends where they appear, before they are sealed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from gradelora.config import TrainConfig
from gradelora.errors import TrainingDiverged
from gradelora.train import seals

# As the Trainer's log names them.
WATCHED = {"loss": "loss", "grad_norm": "gradient norm", "eval_loss": "validation loss"}
Log = Sequence[dict[str, Any]]


class Divergence(TrainerCallback):
    """Raises TrainingDiverged on every rank: all log the same figures, and a step's before its seal."""

    def __init__(self, config: TrainConfig, checkpoints: Path) -> None:
        self.config, self.checkpoints = config, checkpoints

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: Any,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Called after every step and every validation."""
        wrong = [f"{said} {logs[name]}" for name, said in WATCHED.items() if _is_lost(logs or {}, name)] if logs else []
        if wrong:
            what = f"step {state.global_step} of {state.max_steps}: {' and '.join(wrong)}"
            raise TrainingDiverged(f"{what}; {last_finite(state.log_history)}. {self._remedy()}; {self._kept()}")

    def _remedy(self) -> str:
        config = self.config
        return (
            f"Lower train.learning_rate (now {config.learning_rate:g}) or train.max_grad_norm "
            f"(now {config.max_grad_norm:g}), raise train.warmup_steps (now {config.warmup_steps}), "
            "or look for odd answers in the data"
        )

    def _kept(self) -> str:
        sealed = seals.newest_step(self.checkpoints)
        if sealed is None:
            return "no checkpoint was sealed before it"
        return (
            f"the checkpoint of step {sealed} is kept for a rerun with the same settings; "
            "with others training begins anew"
        )


def _is_lost(figures: dict[str, Any], name: str) -> bool:
    return name in figures and not math.isfinite(figures[name])


def last_finite(log: Log) -> str:
    """The last step whose loss and gradient norm were numbers, as words."""
    for entry in reversed(log):
        if "loss" in entry and not any(_is_lost(entry, name) for name in WATCHED):
            norm = f" and gradient norm {entry['grad_norm']:.4g}" if "grad_norm" in entry else ""
            return f"the last finite ones were loss {entry['loss']:.4g}{norm} at step {entry['step']}"
    return "no step before it was finite"
