"""DeepSpeed's configuration, derived from TrainConfig: there is no second file to keep in step."""

from typing import Any

from gradelora.config import TrainConfig


def deepspeed_json(config: TrainConfig, elements: int, *, universal: bool = False) -> dict[str, Any]:
    """What DeepSpeed is told.  The optimizer is left to the Trainer: torch's AdamW needs no compiler.

    `elements` is the number of trainable parameters where known: a larger bucket only takes memory.
    `universal`: the checkpoint to resume from was converted from another number of processes.
    """
    bucket = min(config.reduce_bucket_elements, max(elements, 1000))
    zero: dict[str, Any] = {
        "stage": 3 if config.parallel == "zero3" else 2,
        "overlap_comm": config.device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
    }
    if config.parallel == "zero3":
        # Saving gathers the frozen base, too; the adapter is saved through PEFT alone.
        zero |= {
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_max_live_parameters": config.gathered_elements,
            "stage3_max_reuse_distance": config.gathered_elements,
            # DeepSpeed's own default is the upper limit.
            "stage3_prefetch_bucket_size": min(50_000_000, config.gathered_elements),
        }
    else:
        zero |= {
            "allgather_partitions": True,
            "allgather_bucket_size": bucket,
            "reduce_scatter": True,
            # On, the universal conversion takes each parameter for another (DeepSpeed 0.19.8 links
            # fp32 values in the groups' order, its flat buffer is in round-robin order).
            "round_robin_gradients": False,
        }
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_rows,
        "gradient_accumulation_steps": config.accumulation,
        "train_batch_size": config.micro_batch_rows * config.accumulation * config.processes,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
