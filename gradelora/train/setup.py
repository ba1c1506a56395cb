"""What a rank prepares before its trainer: plans, arguments, model."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradelora.config import TrainConfig
from gradelora.hardware import available_host_bytes
from gradelora.model.load import load_base
from gradelora.rows import Items, Schedule, limits, rows_of, schedule, schedule_of
from gradelora.train import seals
from gradelora.train.job import Job
from gradelora.train.zero import deepspeed_json

# The most that parallel=layers takes of a GPU and of the host for weights, and of what is free there.
GPU_BYTES = 135 << 30
CPU_BYTES = 50 << 30
WEIGHTS_SHARE = 0.95


@dataclass(frozen=True)
class Plans:
    """The data and who sees what when."""

    items: Items
    schedule: Schedule
    validation_items: Items
    validation: Schedule


def plans(job: Job) -> Plans:
    """The whole run's rows and those of one validation; both depend on the job alone."""
    config = job.config
    items, held_out = Items.read(job.data.path / "train"), Items.read(job.data.path / "validation")
    rows = rows_of(held_out, held_out.by_question(), limits(config))
    validation = schedule(rows, held_out, ranks=config.processes, accumulation=1, micro_rows=config.micro_batch_rows)
    return Plans(items=items, schedule=schedule_of(config, items), validation_items=held_out, validation=validation)


def interval(share: float, steps: int) -> int:
    """A share of the run as steps, at least one: it fires on small data, too."""
    return max(1, round(share * steps))


def training_arguments(job: Job, steps: int, resume: Path | None) -> Any:
    """The Trainer's arguments; they hold DeepSpeed's configuration and must outlive the model's loading."""
    from transformers import TrainingArguments

    config = job.config
    schedule_name = config.schedule
    if schedule_name == "constant" and config.warmup_steps:
        schedule_name = "constant_with_warmup"  # type: ignore[assignment]
    validates = job.data.splits.validation > 0
    universal = resume is not None and seals.read(resume).universal
    deepspeed = deepspeed_json(config, config.reduce_bucket_elements, universal=universal)
    return TrainingArguments(
        output_dir=str(job.out / seals.FOLDER),
        use_cpu=config.device == "cpu",
        deepspeed=None if config.parallel == "layers" else deepspeed,
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_rows,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedule_name,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        bf16=config.precision == "bf16",
        seed=config.seed,
        average_tokens_across_devices=True,
        save_strategy="steps",
        save_steps=interval(config.save_every, steps),
        eval_strategy="steps" if validates else "no",
        eval_steps=interval(config.evaluate_every, steps) if validates else None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=job.dataloader_workers,
        dataloader_pin_memory=config.device == "cuda",
    )


def load_model(job: Job) -> Any:
    """The frozen base as the job wants it; spread over all GPUs for parallel=layers."""
    config = job.config
    max_memory = room_for_layers() if config.parallel == "layers" and config.device == "cuda" else None
    return load_base(
        job.snapshot,
        weights=config.weights,
        precision=config.precision,
        device=config.device,
        expert_chunk=config.expert_chunk,
        max_memory=max_memory,
    )


def room_for_layers() -> dict[int | str, int]:
    """Bytes for weights on each GPU, by its number, and on the host: the rest is for activations."""
    import torch

    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    room: dict[int | str, int] = {gpu: min(GPU_BYTES, int(WEIGHTS_SHARE * there)) for gpu, there in enumerate(free)}
    return room | {"cpu": min(CPU_BYTES, int(WEIGHTS_SHARE * available_host_bytes()))}


def fit_buckets(arguments: Any, config: TrainConfig, trainable: int) -> None:
    """Now that the adapter's size is known: no bucket larger than all gradients together."""
    if config.parallel != "layers":
        zero = deepspeed_json(config, trainable)["zero_optimization"]
        arguments.hf_deepspeed_config.config["zero_optimization"].update(zero)


def prepare_checkpointing(model: Any, config: TrainConfig) -> None:
    """Recompute layers in backward; packed experts keep a recomputed layer's weights until then."""
    if not config.gradient_checkpointing:
        return
    from gradelora.model.packed import PackedExperts

    # Reentrant: its first pass runs without gradients, by which the recomputation is told apart.
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, PackedExperts):
            module.keep_recomputed = True


def compile_operator() -> None:
    """DeepSpeed's operator for CPUs: compiled once a machine, by one process at a time.

    Under our lock any lock that torch left behind is a dead process's, for which it would wait for ever.
    """
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gradelora.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("**/lock"):
            stale.unlink(missing_ok=True)
        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
        if builder is not None and builder.is_compatible():
            builder.load(verbose=False)
