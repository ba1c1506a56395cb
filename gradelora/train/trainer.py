"""The Trainer's loop with our rows, our loss positions and our sealed checkpoints."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from gradelora.rows import Row
from gradelora.train import seals
from gradelora.train.budget import Budget
from gradelora.train.choice import Choice
from gradelora.train.collate import IGNORED, RowCollator
from gradelora.train.generators import restore_generators, save_generators
from gradelora.train.job import Origin
from gradelora.train.judge import Judge
from gradelora.train.parts import await_all, gathered
from gradelora.train.result import adapter_weights
from gradelora.train.stop import Stop

BEST = "best_adapter.safetensors"


def barrier() -> None:
    """Wait for all ranks, where there is more than one."""
    if dist.is_initialized():
        dist.barrier()


class RowTrainer(Trainer):
    """Trains on planned micro-batches; evaluates the mean loss over all validation targets, and QWK with a `judge`.

    `best` is the adapter of the best evaluation so far where `choice` wants that; it lies in every checkpoint.
    """

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
        origin: Origin,
        choice: Choice,
        judge: Judge | None,
        stop: Stop,
        patience_s: float,
        budget: Budget | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, train_dataset=list(micro_batches), eval_dataset=list(validation_batches), **kwargs)
        self.collator, self.validation = collator, validation
        self.checkpoints, self.keep, self.origin = checkpoints, keep, origin
        self.choice, self.judge, self.budget = choice, judge, budget
        self.stop, self.patience_s = stop, patience_s
        self.best: dict[str, torch.Tensor] | None = None
        self.add_callback(stop)
        if budget is not None:
            self.add_callback(budget)
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
            pin_memory=self.args.dataloader_pin_memory,
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
        """Judge the validation split on all ranks, keep the adapter if it is the best, stop when none gets better."""
        began = time.monotonic()
        was_training = self.model_wrapped.training
        self.model_wrapped.eval()
        metrics = {"eval_loss": self._validation_loss(self.model_wrapped)}
        if self.judge is not None:
            rank, ranks = self.args.process_index, self.args.world_size
            metrics["eval_qwk"] = self.judge.qwk(self.model, rank=rank, ranks=ranks)
        self.model_wrapped.train(was_training)
        self.log(metrics)
        # It also clears the wish to evaluate, which would else be fulfilled again when the run ends.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._choose()
        if self.budget is not None:
            self.budget.took("evaluation", time.monotonic() - began)
        return metrics

    def _choose(self) -> None:
        standing = self.choice.standing(self.state.log_history)
        if standing is not None and standing.step == self.state.global_step:
            self.best = adapter_weights(self.model, zero3=self.is_deepspeed_zero3)
        if self.choice.exhausted(self.state.log_history):
            self.control.should_training_stop = self.control.should_save = True

    @property
    def is_deepspeed_zero3(self) -> bool:
        """Whether the adapter is spread over the ranks."""
        plugin = self.accelerator.state.deepspeed_plugin
        return plugin is not None and plugin.zero_stage == 3

    def restore(self, checkpoint: Path) -> None:
        """What a checkpoint says before training goes on: the log, and the best adapter on rank 0."""
        self.state = TrainerState.load_from_json(str(checkpoint / seals.TRAINER_STATE))
        if self.args.should_save and (checkpoint / BEST).exists():
            self.best = load_file(checkpoint / BEST)

    @property
    def spread_over_gpus(self) -> bool:
        """Whether this one process computes on several GPUs."""
        return self.args.device.type == "cuda" and not self.is_deepspeed_enabled

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.spread_over_gpus:
            save_generators(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.spread_over_gpus:
            restore_generators(Path(checkpoint))

    def _validation_loss(self, model: Any) -> float:
        """Mean loss over all targets."""
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for micro in self.eval_dataset:
                batch = self._prepare_inputs(self.validation(micro))
                count = (batch["shift_labels"] != IGNORED).sum()
                loss = self.compute_loss(model, batch, num_items_in_batch=torch.ones((), device=self.args.device))
                # compute_loss scales by the ranks, because gradients are averaged over them.
                total += torch.stack([loss.double() / self.accelerator.num_processes, count.double()])
        if dist.is_initialized():
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """All ranks write, rank 0 seals what it sees of all of them, older ones go only then."""
        began = time.monotonic()
        folder = seals.folder_of(self.checkpoints, self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            # DeepSpeed's own file holds the trainable weights.
            self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / seals.TRAINER_STATE))
            if self.best is not None:
                save_file(self.best, folder / BEST)
        parts = gathered(folder)
        if self.args.should_save:
            await_all(folder, parts, self.patience_s)
            seals.seal(
                folder,
                step=self.state.global_step,
                world_size=self.args.world_size,
                identity=self.origin.identity,
                origin=self.origin,
                parts=parts,
            )
            seals.prune(self.checkpoints, self.keep)
        barrier()
        if self.budget is not None:
            self.budget.took("seal", time.monotonic() - began)
