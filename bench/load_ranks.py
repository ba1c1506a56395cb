"""Ranks that only load the base, to see what that takes: bench_memory and a test start them.

    torchrun --standalone --nproc_per_node 2 -m bench.load_ranks WEIGHTS PARALLEL MODEL

Rank 0 prints a JSON list: of each rank the peak and the final anonymous memory beyond its imports,
and what its parameters hold, in bytes; then how many parameters, whole, are not the file's values.
Mapped files are left out: the kernel drops them when it must.
"""

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from gradelora.config import TrainConfig
from gradelora.model.load import Checkpoint, load_base
from gradelora.train.setup import compile_operator
from gradelora.train.zero import deepspeed_json


def anonymous_bytes() -> int:
    """RssAnon of this process (proc(5))."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def load(config: TrainConfig, model: Path) -> Any:
    """The frozen base as training loads it, and what must live as long."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir="/nowhere",
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=config.micro_batch_rows,
        gradient_accumulation_steps=config.accumulation,
        report_to="none",
        deepspeed=deepspeed_json(config, 10**9),
    )
    return arguments, load_base(model, weights=config.weights, precision="bf16", device="cpu")


def differing(model: Any, checkpoint: Checkpoint) -> int:
    """Parameters that are not, bit for bit, what the file holds; gathered under ZeRO-3.  All ranks must call."""
    wrong = 0
    for name, parameter in model.named_parameters():
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if sharded else contextlib.nullcontext():
            wrong += not torch.equal(parameter.data, checkpoint.weight(name, parameter.dtype, "cpu"))
    return wrong


def main() -> None:
    weights, parallel, model = sys.argv[1:]
    config = TrainConfig.model_validate({"device": "cpu", "weights": weights, "parallel": parallel})
    # As training does: else another run that starts now takes this one's lock for a dead process's.
    compile_operator()
    deepspeed.init_distributed("gloo", verbose=False)
    dist.barrier()
    before, peak, over = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = load(config, Path(model))
    over.set()
    watcher.join()
    after = anonymous_bytes()
    held = sum(getattr(parameter, "ds_tensor", parameter).nbytes for parameter in kept[1].parameters())
    own = {"peak": max(peak[0], after) - before, "after": after - before, "held": held}
    own["differing"] = differing(kept[1], Checkpoint(Path(model)))
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
