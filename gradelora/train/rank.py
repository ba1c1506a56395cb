"""One training process: `torchrun -m gradelora.train.rank JOB.json`.

The order of what follows is what DeepSpeed needs: its process group first, the Trainer's
arguments (which hold its configuration) before the model, the seed before the adapter.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from gradelora.artifacts import ASIDE
from gradelora.child import Failure
from gradelora.errors import BudgetReached, Cancelled, GradeloraError, NotEnoughMemory
from gradelora.train import seals
from gradelora.train.cancel import STOP
from gradelora.train.job import FAILURE, PROGRESS, RESULT, Job, Result
from gradelora.train.memory import out_of_memory


def main(arguments: list[str]) -> int:
    """Train; an error of ours is written where the launching process finds it."""
    # The deepspeed launcher puts --local_rank before the rest.
    job = Job.model_validate_json(Path(arguments[-1]).read_text())
    end_with_parents(job.launcher_pid)
    try:
        run(job)
    except GradeloraError as error:
        return _fail(job, error)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return _fail(job, NotEnoughMemory(f"training ran out of memory: {error}"))
    return 0


def _fail(job: Job, error: GradeloraError) -> int:
    traceback.print_exc()
    failure = Failure(error=type(error).__name__, message=str(error))
    part = job.out / ASIDE / f"{FAILURE}.{os.getpid()}"
    part.write_text(failure.model_dump_json())
    part.replace(job.out / ASIDE / FAILURE)
    return error.exit_code


def end_with_parents(launcher_pid: int) -> None:
    """End this process when its launcher, or the process that started that, is gone.

    torchrun gives every rank a session of its own, so no signal to a group reaches it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and _runs(launcher_pid):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _runs(pid: int) -> bool:
    """Whether the process lives; one that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def run(job: Job) -> None:
    """The whole training of one rank."""
    quiet()
    distributed = job.config.parallel != "layers"
    if distributed:
        init_distributed(job)
    import torch
    from transformers import set_seed

    from gradelora.model.adapter import attach, parameter_counts
    from gradelora.train.setup import load_model, plans, training_arguments

    plan = plans(job)
    # Before the base is loaded: a fault of the data is told at once.
    judge = judge_of(job)
    resume = newest_checkpoint(job)
    arguments = training_arguments(job, plan.schedule.steps, resume)
    base = load_model(job)
    set_seed(job.config.seed)
    model = attach(base, job.config.lora)
    counts = parameter_counts(model)
    trainer = build_trainer(job, model, arguments, plan, judge, counts[0])
    # Each rank its own dropout; the adapter's first values were the same on all.
    torch.manual_seed(job.config.seed * 1000 + arguments.process_index)
    if resume:
        trainer.restore(resume)
    if not trainer.choice.exhausted(trainer.state.log_history):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    over = trainer.choice.exhausted(trainer.state.log_history)
    if trainer.budget and trainer.budget.reached and not over:
        raise BudgetReached(trainer.budget.reached)
    if trainer.stop.reached and not over:
        raise Cancelled(trainer.stop.reached)
    finish(job, trainer, counts)
    if distributed:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def quiet() -> None:
    """Keep the log readable: what these libraries warn of is known and handled."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed|peft)\b.*")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def init_distributed(job: Job) -> None:
    """The process group, before any model exists; DeepSpeed's operator is compiled by one process at a time."""
    import deepspeed

    from gradelora.train.meeting import meet
    from gradelora.train.setup import compile_operator

    backend = "nccl" if job.config.device == "cuda" else "gloo"
    if backend == "nccl":
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    compile_operator()
    deepspeed.init_distributed(backend, verbose=False, timeout=timedelta(seconds=job.collective_timeout_s))
    if job.nodes > 1:
        meet(job)


def judge_of(job: Job) -> Any:
    """Who scores the validation split, where `train.best` asks for it.  Raises BadData."""
    from gradelora.train.judge import Judge

    return Judge.read(job.data, job.evaluate_rows) if job.config.best == "validation_qwk" else None


def build_trainer(job: Job, model: Any, arguments: Any, plan: Any, judge: Any, trainable: int) -> Any:
    """The trainer with its rows; the first batch is proved before anything is learned from it."""
    from gradelora.model.tree import Masking
    from gradelora.train.budget import Budget
    from gradelora.train.choice import Choice
    from gradelora.train.collate import RowCollator, prove
    from gradelora.train.divergence import Divergence
    from gradelora.train.progress import Progress
    from gradelora.train.setup import fit_buckets, prepare_checkpointing
    from gradelora.train.stop import Stop
    from gradelora.train.tracking import Trackers
    from gradelora.train.trainer import RowTrainer

    rank = arguments.process_index
    fit_buckets(arguments, job.config, trainable)
    prepare_checkpointing(model, job.config)
    masking = Masking.of(model)
    collator = RowCollator(plan.items, job.data.pad_token_id, masking)
    micro_batches = plan.schedule.of_rank(rank)
    prove(collator(micro_batches[0]), micro_batches[0], collator)
    tokens_of_step = lambda step: plan.schedule.tokens(plan.items, step)  # noqa: E731
    progress = Progress(job.out / ASIDE / PROGRESS, tokens_of_step, Trackers(job))
    return RowTrainer(
        model=model,
        args=arguments,
        callbacks=[progress, Divergence(job.config, job.out / seals.FOLDER)],
        collator=collator,
        micro_batches=micro_batches,
        validation=RowCollator(plan.validation_items, job.data.pad_token_id, masking),
        validation_batches=plan.validation.of_rank(rank),
        checkpoints=job.out / seals.FOLDER,
        keep=job.config.keep_checkpoints,
        origin=job.origin,
        choice=Choice(job.config.best, job.config.patience),
        judge=judge,
        stop=Stop(job.out / ASIDE / STOP, job.seal_every_s),
        patience_s=job.patience_s,
        budget=None if job.budget_s is None else Budget(job, job.budget_s),
    )


def newest_checkpoint(job: Job) -> Path | None:
    """All ranks choose the same checkpoint: rank 0 looks, the others are told."""
    import torch.distributed as dist

    chosen: list[Path | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", seals.DamagedCheckpoint)
            chosen[0] = seals.newest(job.out / seals.FOLDER, world_size=job.config.processes, identity=job.identity)
        for warning in caught:
            print(f"warning: {warning.message}", flush=True)
        print(f"resuming from {chosen[0].name}" if chosen[0] else "starting at step 0", flush=True)
    if dist.is_initialized():
        dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def finish(job: Job, trainer: Any, counts: tuple[int, int]) -> None:
    """Gather the adapter on all ranks; rank 0 writes adapter, history and result."""
    from gradelora.train.result import adapter_weights, history_of, save_adapter, save_history

    state, choice = trainer.state, trainer.choice
    weights = trainer.best if choice.by_evaluation else adapter_weights(trainer.model, trainer.is_deepspeed_zero3)
    if not trainer.args.should_save:
        return
    peft_config = trainer.model.peft_config["default"]
    save_adapter(job.out, weights, peft_config, repo_id=job.repo_id, commit=job.commit)
    notes = choice.notes(state.log_history, state.global_step, trainer.args.max_steps)
    history = history_of(state.log_history, notes)
    save_history(job.out, history)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    standing = choice.standing(state.log_history)
    result = Result(
        trainable_parameters=counts[0],
        total_parameters=counts[1],
        steps=state.global_step,
        final_loss=losses[-1],
        chosen_step=standing.step if standing else None,
    )
    (job.out / ASIDE / RESULT).write_text(result.model_dump_json())


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
