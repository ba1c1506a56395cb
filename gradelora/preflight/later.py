"""Memory of what is not training itself: loading, the host beside the GPUs, evaluation, merge.

A run that trains and then cannot be evaluated is as lost as one that cannot train.
"""

from collections.abc import Collection
from typing import Literal

from gradelora.config import RunConfig, Runtime, TrainConfig
from gradelora.hardware import Hardware
from gradelora.preflight.calibrated import evaluating
from gradelora.preflight.memory import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    SCORES_AT_WORK,
    UNPACKING_BYTES,
    MemoryPlan,
    Need,
    context_bytes,
    heap_factor,
    kernel_bytes,
    layer_bytes,
    lora_bytes,
    on_device,
    weight_bytes,
)
from gradelora.preflight.size import ModelSize
from gradelora.preflight.workload import Workload
from gradelora.scoring.passes import ANSWERS_PER_ROW, TOKENS_PER_ROW

EVALUATION, LOADING, JUDGING = "evaluation", "loading", "scoring between steps"
MERGE, VERIFYING = "merge", "verification of the merge"
HOST = "host beside the GPUs"
# Whose memory a row is, where that is not the training's own.
STAGES_OF = {EVALUATION: ("evaluate",), MERGE: ("merge",), VERIFYING: ("merge",), HOST: ("train", "evaluate")}
# A process that uses a GPU: torch's libraries and pinned buffers in the host's memory.
HOST_CONTEXT_BYTES = 5_000_000_000
# Measured by bench/bench_merge.py; experts need torch, though neither transformers nor deepspeed.
MERGE_CONTEXT_BYTES, EXPERTS_CONTEXT_BYTES = 100_000_000, 300_000_000
# gradelora.merge.verify leaves the rest of what is free to activations.
VERIFYING_SHARE = 0.85


def later_stages(run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware) -> tuple[MemoryPlan, ...]:
    """Loading, evaluation, merge where it is asked for, and the host where GPUs do the work."""
    plans = [plan_loading(run.train, size, hardware), plan_evaluation(run, work, size, hardware)]
    if run.train.best == "validation_qwk":
        plans.append(plan_judging(run, work, size, hardware))
    if run.merge.enabled:
        plans.append(plan_merge(run, size, hardware))
        if run.merge.verify_items:
            plans.append(plan_verifying(run, work, size, hardware))
    if run.train.device == "cuda":
        plans.append(plan_host(run, size, hardware))
    return tuple(plans)


def runs(row: MemoryPlan, sealed: Collection[str]) -> bool:
    """Whether a stage of this row will run: what is sealed needs no memory."""
    return any(stage not in sealed for stage in STAGES_OF.get(row.mode, ("train",)))


def plan_loading(train: TrainConfig, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """The moment at which all weights are there and the last tensor is still being converted."""
    width = 2 if train.precision == "bf16" else 4
    on_gpu = train.device == "cuda"
    tensor = int(UNPACKING_BYTES * size.largest_packed) if train.weights == "bf16" else 0
    if train.parallel == "zero3":
        # Every rank gathers one tensor whole, rank 0 fills it.
        tensor += width * max(size.largest_tensor, size.largest_packed)
    needs = [
        Need(what="weights", bytes=weight_bytes(train, size, width, hardware)),
        Need(what="one tensor converted", bytes=tensor),
        # A CPU reads the files through a mapping that counts until loading ends.
        Need(what="mapped files", bytes=0 if on_gpu or train.weights == "packed" else size.disk_bytes),
        Need(what="context", bytes=context_bytes(train)),
    ]
    return on_device(LOADING, needs, train, hardware)


def plan_host(run: RunConfig, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """The host's part of a GPU run.  Mapped files are not counted: the kernel drops them when it must."""
    train = run.train
    dense = size.largest_packed == 0 and train.parallel != "layers"
    width = 2 if train.precision == "bf16" else 4
    # transformers builds a dense model in the host's memory before it moves to the GPU.
    whole = width * size.parameters // (train.processes if train.parallel == "zero3" else 1) if dense else 0
    needs = (
        Need(what="weights on their way", bytes=whole or width * max(size.largest_tensor, size.largest_packed)),
        Need(what="context", bytes=HOST_CONTEXT_BYTES),
    )
    return MemoryPlan(
        mode=HOST,
        device="host",
        # Training or evaluation, whichever has more of them.
        processes_per_device=max(train.processes, evaluating(run, hardware)),
        available_bytes=hardware.host_bytes,
        needs=needs,
    )


def plan_evaluation(run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """Each process with a model of its own, whatever trained: base and adapter at once, answers behind their prefix.

    On GPUs one process each; on a CPU all of them in the host's memory.
    """
    evaluate = run.evaluate
    needs = _scoring_needs(run, work, size, hardware, evaluate.weights)
    needs.insert(2, Need(what="LoRA", bytes=4 * size.lora_parameters))
    on_gpu = evaluate.device == "cuda"
    return MemoryPlan(
        mode=EVALUATION,
        device="one GPU" if on_gpu else "host",
        processes_per_device=1 if on_gpu else evaluating(run, hardware),
        available_bytes=hardware.gpu_bytes if on_gpu else hardware.host_bytes,
        needs=tuple(_fragmented(needs, on_gpu)),
    )


def plan_verifying(run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """The merged model, loaded once more to score some items; in bf16 over all GPUs and, where they end, the host."""
    on_gpu, weights = run.merging.device == "cuda", run.merging.weights
    device, available = ("one GPU", hardware.gpu_bytes) if on_gpu else ("host", hardware.host_bytes)
    if on_gpu and weights == "bf16":
        device = "GPUs and host"
        available = int(VERIFYING_SHARE * (hardware.gpus * hardware.gpu_bytes + hardware.host_bytes))
    return MemoryPlan(
        mode=VERIFYING,
        device=device,
        processes_per_device=1,
        available_bytes=available,
        needs=tuple(_fragmented(_scoring_needs(run, work, size, hardware, weights), on_gpu)),
    )


def _fragmented(needs: list[Need], on_gpu: bool) -> list[Need]:
    if not on_gpu:
        return needs
    return [*needs, Need(what="fragmentation", bytes=int(FRAGMENTATION * sum(n.bytes for n in needs)))]


def _scoring_needs(
    run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware, weights: Literal["packed", "bf16"]
) -> list[Need]:
    """Of one process that loads the model as evaluate does, with `weights`, and scores answers behind their prefix."""
    evaluate = run.evaluate
    width = 2 if evaluate.precision == "bf16" else 4
    # It loads as one training process does, on one device.
    alone = run.train.model_copy(
        update={
            "weights": weights,
            "precision": evaluate.precision,
            "device": evaluate.device,
            "parallel": "zero2",
            "processes": 1,
            "expert_chunk": 0,
            "gradient_checkpointing": False,
        }
    )
    heap = heap_factor(alone)
    working, cached, positions = _pass_sizes(run.runtime, work, size, width)
    return [
        Need(what="weights", bytes=weight_bytes(alone, size, width, hardware)),
        Need(what="one layer unpacked", bytes=layer_bytes(alone, size, width)),
        Need(what="keys and values", bytes=int(heap * cached)),
        Need(what="layer at work", bytes=int(heap * working)),
        Need(what="logits", bytes=(width + 4) * positions * size.vocabulary),
        Need(what="compiled kernels", bytes=kernel_bytes(alone)),
        Need(what="context", bytes=CONTEXT_BYTES[evaluate.device]),
    ]


def plan_judging(run: RunConfig, work: Workload, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """Validation answers scored between two steps: evaluation's passes beside training's optimizer."""
    train = run.train
    width = 2 if train.precision == "bf16" else 4
    heap = heap_factor(train)
    working, cached, positions = _pass_sizes(run.runtime, work, size, width)
    needs = [
        Need(what="weights", bytes=weight_bytes(train, size, width, hardware)),
        Need(what="one layer unpacked", bytes=layer_bytes(train, size, width)),
        Need(what="LoRA and optimizer", bytes=lora_bytes(train, size, width)),
        Need(what="keys and values", bytes=int(heap * cached)),
        Need(what="layer at work", bytes=int(heap * working)),
        Need(what="logits", bytes=(width + 4) * positions * size.vocabulary),
        Need(what="compiled kernels", bytes=kernel_bytes(train)),
        Need(what="context", bytes=context_bytes(train)),
    ]
    return on_device(JUDGING, needs, train, hardware)


def _pass_sizes(runtime: Runtime, work: Workload, size: ModelSize, width: int) -> tuple[int, int, int]:
    """(bytes of the layer at work, bytes of keys and values, positions with logits) of the largest pass."""
    rows = runtime.evaluate_rows
    branch = work.longest_branch + work.candidate_tokens
    answers = max(1, min(rows * ANSWERS_PER_ROW, rows * TOKENS_PER_ROW // branch))
    answers = min(answers, work.judged_items or answers)
    prefix = work.longest_prefix or work.longest
    prefixes = min(answers, work.judged_questions or answers, max(1, rows * TOKENS_PER_ROW // max(prefix, 1)))
    tokens = max(answers * branch, prefixes * prefix)
    seen = work.longest + work.candidate_tokens
    scores = size.heads * tokens * seen
    experts = tokens * width * (4 * size.active_intermediate + 2 * max(size.routed, 1) * size.hidden)
    kept = answers * seen + prefixes * prefix
    keys_values = 2 * size.layers * kept * size.key_value_heads * size.head_dim * width
    return max(SCORES_AT_WORK * scores * width, experts), keys_values, answers * (work.candidate_tokens + 1)


def plan_merge(run: RunConfig, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """An expert's matrix in fp32, beside its delta and their sum; other weights pass some rows at a time."""
    context = MERGE_CONTEXT_BYTES
    needs: tuple[Need, ...] = ()
    if run.merge.dtype == "bf16" or run.train.lora.target_parameters:
        largest = size.hidden * max(size.heads * size.head_dim, size.active_intermediate)
        context = EXPERTS_CONTEXT_BYTES
        needs = (Need(what="one weight, its delta, their sum", bytes=3 * 4 * largest),)
    return MemoryPlan(
        mode=MERGE,
        device="host",
        processes_per_device=1,
        available_bytes=hardware.host_bytes,
        needs=(*needs, Need(what="context", bytes=context)),
    )
