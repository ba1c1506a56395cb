"""What a training tells while it goes on."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from gradelora.child import peak_gpu_bytes
from gradelora.train.tracking import Trackers

EVALUATED = ("eval_loss", "eval_qwk")


class Progress(TrainerCallback):
    """One line of JSON a step, the same to all trackers, a sentence a twentieth of the run to the log; rank 0 alone."""

    def __init__(self, path: Path, tokens_of_step: Callable[[int], int], trackers: Trackers) -> None:
        self.path, self.tokens_of_step, self.trackers = path, tokens_of_step, trackers
        self.started = self.last = time.monotonic()

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Loading is no part of the first step's time."""
        self.last = time.monotonic()
        if state.is_world_process_zero:
            self.trackers.begin(state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Let the trackers write what they still hold."""
        self.trackers.end()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Called after every step and every validation."""
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & set(logs):
            return
        now = time.monotonic()
        step = state.global_step
        line: dict[str, Any] = {"step": step, "steps": state.max_steps, "seconds": round(now - self.started, 3)}
        if "loss" in logs:
            line |= {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            line["tokens"] = self.tokens_of_step(step - 1)
            line["tokens_per_s"] = round(line["tokens"] / max(now - self.last, 1e-9), 1)
            line["peak_memory_bytes"] = _peak_bytes(args)
        else:
            line |= {"validation" + name.removeprefix("eval"): logs[name] for name in EVALUATED if name in logs}
        self.last = now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.trackers.log(step, {name: line[name] for name in line if name not in ("step", "steps", "seconds")})
        if "eval_loss" in logs:
            agreement = f", QWK {logs['eval_qwk']:.4f}" if "eval_qwk" in logs else ""
            print(f"step {step}/{state.max_steps}: validation loss {logs['eval_loss']:.4f}{agreement}", flush=True)
        elif step in (1, state.max_steps) or step % max(1, state.max_steps // 20) == 0:
            print(
                f"step {step}/{state.max_steps}: loss {logs['loss']:.4f}, {line['tokens_per_s']} tokens/s", flush=True
            )


def _peak_bytes(args: TrainingArguments) -> int:
    """Most memory ever held: of a GPU where there is one, else of this process."""
    if args.device.type == "cuda":
        return peak_gpu_bytes()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
