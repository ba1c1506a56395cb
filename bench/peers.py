"""One arm of bench_peers in a process of its own: `python -m bench.peers ARM WORK`.

Prints one JSON line: CPU-seconds (user and system) of imports, of loading the model, of
`Trainer.train` and of all that is left (preparing data, saving), and each step's loss.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# CPU-seconds are compared, and no arm shall pay for threads that wait.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
# An answer's place in the run is the same in every arm: STEP answers make one optimizer step.
STEP, LEARNING_RATE, WARMUP = 12, 2e-4, 2
PEERS = Path(__file__).resolve().parents[1] / ".cache" / "peers"
LORA = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "lora_dropout": 0.0}


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Clock:
    """CPU-seconds by phase; what is in no phase is `rest`."""

    def __init__(self) -> None:
        self.seconds = {"imports": 0.0, "load": 0.0, "train": 0.0}

    def during(self, phase: str, work: Callable[[], Any]) -> Any:
        """Do `work`, count its time as `phase`."""
        started = cpu_seconds()
        try:
            return work()
        finally:
            self.seconds[phase] += cpu_seconds() - started

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Count every call of `owner.name` as a part of `phase`."""
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **named: self.during(phase, lambda: function(*args, **named)))


def peer_model(work: Path, clock: Clock) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # The tutorial's attention without flash_attn, on a CPU in fp32: there bf16 is slower.
    load = AutoModelForCausalLM.from_pretrained
    return clock.during("load", lambda: load(work / "dense", dtype=torch.float32, attn_implementation="eager"))


def arguments(kind: Any, work: Path, **changes: Any) -> Any:
    """The tutorial's TrainingArguments where they mean something on a CPU."""
    values: dict[str, Any] = {
        "output_dir": str(work / "checkpoints"),
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": STEP // 3,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "optim": "adamw_torch_fused",
        "bf16": False,
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    return kind(**(values | changes))


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def tutorial(work: Path, clock: Clock) -> list[float]:
    """reference tutorial, mended where it would not run or would train on something else."""

    def imports() -> None:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer  # noqa: F401

    clock.during("imports", imports)
    from datasets import load_from_disk
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    tokenizer = AutoTokenizer.from_pretrained(work / "dense")
    model = peer_model(work, clock)
    for parameter in model.parameters():
        parameter.requires_grad = False
    set_seed(0)
    model = get_peft_model(model, LoraConfig(**LORA, bias="none", task_type="CAUSAL_LM"))
    trainer = Trainer(
        model=model,
        args=arguments(TrainingArguments, work, remove_unused_columns=False),
        train_dataset=load_from_disk(str(work / "rows")),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    clock.during("train", trainer.train)
    trainer.save_model(str(work / "final"))
    return losses_of(trainer)


def trl(work: Path, clock: Clock, *, masked: bool = False) -> list[float]:
    """TRL's SFTTrainer on the same ids and labels; no auxiliary loss, no checkpointing, as in the other arms."""
    sys.path.insert(0, str(PEERS))

    def imports() -> None:
        import trl.trainer.sft_trainer  # noqa: F401

    clock.during("imports", imports)
    import trl.trainer.utils
    from datasets import load_from_disk
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    if masked:
        # Only the choice of positions: its kernels stay those for CPUs.
        trl.trainer.utils._use_triton = lambda device: True
    more = {"router_aux_loss_coef": 0.0, "gradient_checkpointing": False, "max_length": None}
    trainer = SFTTrainer(
        model=peer_model(work, clock),
        args=arguments(SFTConfig, work, **more),
        train_dataset=load_from_disk(str(work / "rows")).select_columns(["input_ids", "labels"]),
        processing_class=AutoTokenizer.from_pretrained(work / "dense"),
        peft_config=LoraConfig(**LORA, bias="none", task_type="CAUSAL_LM"),
    )
    clock.during("train", trainer.train)
    trainer.save_model(str(work / "final"))
    return losses_of(trainer)


def trl_masked(work: Path, clock: Clock) -> list[float]:
    """The same with the positions dropped that carry no loss, which TRL does on CUDA and XPU alone."""
    return trl(work, clock, masked=True)


def gradelora(work: Path, clock: Clock, weights: str = "bf16") -> list[float]:
    """A whole training run of ours in one process: rows planned, proved, trained, sealed, saved.

    The experts are dequantised for good, as in the other arms.
    """

    def imports() -> None:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        from transformers import Trainer  # noqa: F401

        import gradelora.model.load
        import gradelora.train.trainer  # noqa: F401

    clock.during("imports", imports)
    from transformers import Trainer

    from gradelora.train import setup
    from gradelora.train.job import Job
    from gradelora.train.rank import run

    clock.watch(setup, "load_base", "load")
    clock.watch(Trainer, "train", "train")
    job = Job.model_validate_json((work / "job.json").read_text())
    config, out = job.config.model_copy(update={"weights": weights}), work / f"out-{weights}"
    (out / "aside").mkdir(parents=True)
    run(job.model_copy(update={"config": config, "out": out, "launcher_pid": os.getpid()}))
    history = json.loads((out / "history.json").read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


def gradelora_packed(work: Path, clock: Clock) -> list[float]:
    """The same with experts in MXFP4: a quarter of their memory, unpacked twice a step."""
    return gradelora(work, clock, weights="packed")


TUTORIAL, TRL_PLAIN, OURS = "the tutorial", "TRL, as it is on a CPU", "gradelora"
ARMS = {
    TUTORIAL: tutorial,
    TRL_PLAIN: trl,
    "TRL, its CUDA-only masking forced": trl_masked,
    OURS: gradelora,
    "gradelora, experts packed": gradelora_packed,
}


def main() -> int:
    name, work = sys.argv[1], Path(sys.argv[2])
    begun, wall, clock = cpu_seconds(), time.monotonic(), Clock()
    losses = ARMS[name](work, clock)
    seconds = clock.seconds | {"rest": cpu_seconds() - begun - sum(clock.seconds.values())}
    print(json.dumps({"cpu_s": seconds, "wall_s": time.monotonic() - wall, "losses": losses}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
