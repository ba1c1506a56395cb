"""The Trainer's loop with our rows, our loss positions and our sealed checkpoints."""

import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from gradelora.rows import Row
from gradelora.train import seals
from gradelora.train.collate import IGNORED, RowCollator

TRAINER_STATE = "trainer_state.json"


def barrier() -> None:
    """Wait for all ranks, where there is more than one."""
    if dist.is_initialized():
        dist.barrier()


class RowTrainer(Trainer):
    """Trains on planned micro-batches; evaluates the mean loss over all validation targets."""

    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        collator: RowCollator,
        micro_batches: Sequence[tuple[Row, ...]],
        validation: RowCollator,
        validation_batches: Sequence[tuple[Row, ...]],
        checkpoints: Path,
        keep: int,
        identity: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, train_dataset=list(micro_batches), eval_dataset=list(validation_batches), **kwargs)
        self.collator, self.validation = collator, validation
        self.checkpoints, self.keep, self.identity = checkpoints, keep, identity
        self.model_accepts_loss_kwargs = True
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's own micro-batches, in the planned order: nothing is left to shuffle or to shard."""
        return DataLoader(
            self.train_dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=lambda micro: self.collator(micro[0]),
            num_workers=self.args.dataloader_num_workers,
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Logits at predicting positions alone: bit-equal loss and gradients, a fraction of the work."""
        shift_labels = inputs["shift_labels"]
        keep = shift_labels != IGNORED
        inputs = {**inputs, "logits_to_keep": keep, "shift_labels": shift_labels[keep]}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Not counted: walking all parameters at every micro-step costs more than it tells."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over all targets of the validation split, on all ranks."""
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for micro in self.eval_dataset:
                batch = self._prepare_inputs(self.validation(micro))
                count = (batch["shift_labels"] != IGNORED).sum()
                loss = self.compute_loss(model, batch, num_items_in_batch=torch.ones((), device=self.args.device))
                # compute_loss scales by the ranks, because gradients are averaged over them.
                total += torch.stack([loss.double() / self.accelerator.num_processes, count.double()])
        model.train(was_training)
        if dist.is_initialized():
            dist.all_reduce(total)
        metrics = {"eval_loss": (total[0] / total[1]).item()}
        self.log(metrics)
        # It also clears the wish to evaluate, which would else be fulfilled again when the run ends.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """All ranks write, rank 0 seals, older ones go only then."""
        folder = seals.folder_of(self.checkpoints, self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            # DeepSpeed's own file holds the trainable weights.
            self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE))
        barrier()
        if self.args.should_save:
            world_size = self.args.world_size
            seals.seal(folder, step=self.state.global_step, world_size=world_size, identity=self.identity)
            seals.prune(self.checkpoints, self.keep)
        barrier()


class Progress(TrainerCallback):
    """One line of JSON a step to `path`, one sentence a twentieth of the run to the log; rank 0 alone."""

    def __init__(self, path: Path, tokens_of_step: Callable[[int], int]) -> None:
        self.path, self.tokens_of_step = path, tokens_of_step
        self.started = self.last = time.monotonic()

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
            line["tokens_per_s"] = round(self.tokens_of_step(step - 1) / max(now - self.last, 1e-9), 1)
            line["peak_memory_bytes"] = _peak_bytes(args)
        else:
            line["validation_loss"] = logs["eval_loss"]
        self.last = now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if "eval_loss" in logs:
            print(f"step {step}/{state.max_steps}: validation loss {logs['eval_loss']:.4f}", flush=True)
        elif step in (1, state.max_steps) or step % max(1, state.max_steps // 20) == 0:
            print(
                f"step {step}/{state.max_steps}: loss {logs['loss']:.4f}, {line['tokens_per_s']} tokens/s", flush=True
            )


def _peak_bytes(args: TrainingArguments) -> int:
    """Most memory ever held: of the GPU where there is one, else of this process."""
    if args.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
