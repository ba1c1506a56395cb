"""Memory at the peak of training; on a CPU run the host takes the GPU's part.

Per process: weights + what is unpacked or gathered for a layer + LoRA with its optimizer + what
forward keeps for backward + the layer at work + logits at supervised positions + allocator and
context.  What is kept follows the autograd graph of transformers' eager attention and of
PackedExperts: inputs of frozen matrices are not kept, those of LoRA's are.
"""

from typing import NamedTuple

from gradelora.artifacts import Frozen
from gradelora.config import TrainConfig
from gradelora.hardware import Hardware
from gradelora.preflight.size import ModelSize

GB = 1e9
# A CUDA context with NCCL buffers.  On a CPU: imports of torch, transformers and peft, measured by
# bench/bench_plan.py, as are the two below.
CONTEXT_BYTES = {"cuda": 2_000_000_000, "cpu": 575_000_000}
# On a CPU, what DeepSpeed's imports and gloo's buffers add.
DEEPSPEED_BYTES = 40_000_000
# On a CPU, kernels that oneDNN compiles for bf16 and keeps: as many as gradelora.model.heap lets it.
KERNEL_BYTES = 60_000_000
# The C library's heap keeps holes between what was freed.
CPU_HEAP = 1.4
# The allocator's slack on a GPU: the tutorial keeps 6 of 141 GB free.
FRAGMENTATION = 0.04
# What a GPU's allocator does not count as handed out.
UNALLOCATED = ("context", "fragmentation")
# Copies of one layer's scores that live at once in forward or backward.
SCORES_AT_WORK = 4
# The weights are known to the byte; of the rest bench/bench_plan.py holds the plan to this at the worst.
SPREAD = 0.2
# ZeRO-3 gathers so many parameters ahead (gradelora.train.zero: DeepSpeed's default), if it may keep as many.
PREFETCHED = 50_000_000
# dequantize() on a GPU, bytes a weight: bytes in order 0.5, their indices 1, values looked up 2, result 2.
UNPACKING_BYTES = 5.5


class Need(Frozen):
    """One part of a sum, in bytes."""

    what: str
    bytes: int


class MemoryPlan(Frozen):
    """What one process of a stage needs at its peak beside what its device has."""

    mode: str
    device: str
    processes_per_device: int
    available_bytes: int
    needs: tuple[Need, ...]

    @property
    def needed_bytes(self) -> int:
        """Of all processes on the device."""
        return self.processes_per_device * sum(n.bytes for n in self.needs)

    @property
    def high_bytes(self) -> int:
        """What it may come to at the worst, for all processes on the device."""
        certain = self.processes_per_device * sum(n.bytes for n in self.needs if n.what == "weights")
        return self.needed_bytes + int(SPREAD * (self.needed_bytes - certain))

    @property
    def process_bytes(self) -> int:
        """Of one process, as a measurement tells it: of a GPU what its allocator hands out, of a host all."""
        unseen = () if self.device == "host" else UNALLOCATED
        return sum(n.bytes for n in self.needs if n.what not in unseen)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the device."""
        return self.needed_bytes <= self.available_bytes

    @property
    def tight(self) -> bool:
        """Whether it fits by the plan's figure, and would not by the worst that this figure may be off."""
        return self.fits and self.high_bytes > self.available_bytes

    @property
    def lacking_bytes(self) -> int:
        """By how much it does not fit; 0 where it does."""
        return max(0, self.needed_bytes - self.available_bytes)

    def spelled(self) -> str:
        """`208.1 of 150.8 GB (weights 233.7, ...)`: measured against needed."""
        parts = ", ".join(f"{n.what} {n.bytes / GB:.1f}" for n in self.needs if n.bytes)
        times = f"{self.processes_per_device} x " if self.processes_per_device > 1 else ""
        return f"{self.needed_bytes / GB:.1f} of {self.available_bytes / GB:.1f} GB ({times}{parts})"


class Row(NamedTuple):
    """The largest row of a micro-batch: tokens, and supervised positions."""

    tokens: int
    positions: int


def plan_memory(train: TrainConfig, row: Row, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """The peak of one training process in the configured mode."""
    width = 2 if train.precision == "bf16" else 4
    layers = layers_on_device(train, size, hardware)
    kept, at_work = activation_bytes(train, row, size, width, layers)
    heap = heap_factor(train)
    needs = [
        Need(what="weights", bytes=weight_bytes(train, size, width, hardware)),
        Need(what=_unpacked(train), bytes=layer_bytes(train, size, width)),
        Need(what="LoRA and optimizer", bytes=lora_bytes(train, size, width)),
        Need(what="sums of expert weights", bytes=_sum_bytes(train, size, width, layers)),
        Need(what="activations kept", bytes=int(heap * kept)),
        Need(what="layer at work", bytes=int(heap * at_work)),
        Need(what="logits", bytes=3 * 4 * train.micro_batch_rows * row.positions * size.vocabulary),
        Need(what="compiled kernels", bytes=kernel_bytes(train)),
        Need(what="context", bytes=context_bytes(train)),
    ]
    return on_device(f"{train.weights} + {train.parallel}", needs, train, hardware)


def on_device(mode: str, needs: list[Need], train: TrainConfig, hardware: Hardware) -> MemoryPlan:
    """The needs of a training process beside what its device has."""
    on_gpu = train.device == "cuda"
    if on_gpu:
        needs = [*needs, Need(what="fragmentation", bytes=int(FRAGMENTATION * sum(n.bytes for n in needs)))]
    return MemoryPlan(
        mode=mode,
        device="each GPU" if on_gpu else "host",
        processes_per_device=1 if on_gpu else train.processes,
        available_bytes=hardware.gpu_bytes if on_gpu else hardware.host_bytes,
        needs=tuple(needs),
    )


def heap_factor(train: TrainConfig) -> float:
    """What activations take of a process's memory, as a multiple of their own (gradelora.model.heap)."""
    mapped = train.weights == "packed" or train.parallel == "zero3"
    return 1.0 if train.device == "cuda" or mapped else CPU_HEAP


def context_bytes(train: TrainConfig) -> int:
    """What a training process takes before it holds anything of the model."""
    distributed = train.device == "cpu" and train.parallel != "layers"
    return CONTEXT_BYTES[train.device] + (DEEPSPEED_BYTES if distributed else 0)


def kernel_bytes(train: TrainConfig) -> int:
    """What products in bf16 leave behind on a CPU."""
    return KERNEL_BYTES if train.device == "cpu" and train.precision == "bf16" else 0


def layers_on_device(train: TrainConfig, size: ModelSize, hardware: Hardware) -> int:
    """Decoder layers of which one device keeps activations: all, or its part where layers are spread."""
    if train.parallel == "layers" and train.device == "cuda":
        return -(-size.layers // max(hardware.gpus, 1))
    return size.layers


def weight_bytes(train: TrainConfig, size: ModelSize, width: int, hardware: Hardware) -> int:
    """What stays for the whole run on one device."""
    if train.weights == "packed":
        # On a CPU the files stay mapped; what is used in another type is a copy beside them.
        if train.device == "cpu":
            return size.disk_bytes + (width * size.other_parameters if width != 2 else 0)
        whole = size.expert_disk_bytes + width * size.other_parameters
        return spread(whole, size, hardware) if train.parallel == "layers" else whole
    whole = width * size.parameters
    if train.parallel == "layers" and train.device == "cuda":
        return spread(whole, size, hardware)
    return whole // train.processes if train.parallel == "zero3" else whole


def spread(whole: int, size: ModelSize, hardware: Hardware) -> int:
    """The fullest of all GPUs: whole layers, and embeddings beside them."""
    gpus = max(hardware.gpus, 1)
    share = size.embedding_parameters / size.parameters
    layers = -(-size.layers // gpus)
    return int(whole * ((1 - share) * layers / size.layers + (share if gpus == 1 else share / 2)))


def _unpacked(train: TrainConfig) -> str:
    return "one layer unpacked" if train.weights == "packed" else "layers gathered"


def layer_bytes(train: TrainConfig, size: ModelSize, width: int) -> int:
    """Experts of one layer in full width (packed), or what ZeRO-3 gathers, what it keeps of that included."""
    if train.weights == "packed":
        return _unpacking_bytes(train, size, width)
    if train.parallel != "zero3":
        return 0
    kept = min(size.parameters, train.gathered_elements + size.layer_parameters)
    # Gathered into one flat buffer and copied out of it: what is under way is there twice, what is kept once.
    under_way = min(size.parameters, min(PREFETCHED, train.gathered_elements) + size.layer_parameters)
    return width * (kept + under_way)


def _unpacking_bytes(train: TrainConfig, size: ModelSize, width: int) -> int:
    """The larger of a layer's two expert tensors while it is unpacked; both, where backward keeps them."""
    share = 1.0
    if train.expert_chunk and size.routed:
        share = min(1.0, train.expert_chunk / size.experts)
    largest = size.largest_packed
    smaller = size.expert_parameters // size.layers - largest
    if train.device == "cpu":
        # By small pieces, so that only the cast from bf16 holds a second copy.
        return int(share * (width * (largest + smaller) + (2 * largest if width != 2 else 0)))
    kept = width * largest if train.gradient_checkpointing and share == 1.0 else 0
    return int(share * max(UNPACKING_BYTES * largest, kept + UNPACKING_BYTES * smaller))


def lora_bytes(train: TrainConfig, size: ModelSize, width: int) -> int:
    """Values and gradients, fp32 values and two moments (a rank's share of them), two buckets."""
    ranks = 1 if train.parallel == "layers" else train.processes
    bucket = 0 if train.parallel == "layers" else min(train.reduce_bucket_elements, size.lora_parameters)
    return 2 * width * size.lora_parameters + 12 * size.lora_parameters // ranks + 2 * width * bucket


def _sum_bytes(train: TrainConfig, size: ModelSize, width: int, layers: int) -> int:
    """W + D of targeted experts, kept for backward by every layer that is not recomputed, and a layer's gradient of it.

    PEFT adds to the weight itself (peft/tuners/lora/layer.py, ParamWrapper), not to what it multiplies.
    """
    kept = 1 if train.gradient_checkpointing else layers
    return (kept + 1) * width * size.lora_experts // size.layers


def adapter_width(train: TrainConfig) -> int:
    """Bytes of a value of the adapter: DeepSpeed casts what PEFT makes in fp32, ZeRO-3 and one process do not."""
    return 2 if train.precision == "bf16" and train.parallel == "zero2" else 4


def lora_input_bytes(train: TrainConfig) -> int:
    """What LoRA keeps of each of its inputs: the value in its own type, and what dropout multiplied it by."""
    own = adapter_width(train)
    if not train.lora.dropout:
        return own
    # torch's dropout keeps a mask on a GPU, a tensor of factors on a CPU.
    return own + (1 if train.device == "cuda" else own)


def activation_bytes(train: TrainConfig, row: Row, size: ModelSize, width: int, layers: int) -> tuple[int, int]:
    """(kept for backward by `layers` layers, held by the layer that computes)."""
    tokens = train.micro_batch_rows * row.tokens
    scores = train.micro_batch_rows * size.heads * row.tokens**2
    attention = size.heads * size.head_dim
    # Norms keep fp32; LoRA its input; attention q, k, v after rotation.
    per_token = 8 * size.hidden + lora_input_bytes(train) * size.lora_inputs // size.layers
    per_token += 3 * width * attention
    if train.parallel == "zero3":
        # DeepSpeed's linear keeps its input although the matrix is frozen (LinearFunctionForZeroStage3).
        per_token += width * (2 * size.hidden + attention)
    # Gated experts keep six tensors and their product with the routing weight, a gated MLP three.
    per_token += width * (6 * size.active_intermediate + size.routed * size.hidden if size.routed
                          else 3 * size.active_intermediate)  # fmt: skip
    # Softmax in fp32 is kept beside its copy in the model's type, unless they are the same.
    per_score = width if size.narrow_scores or width == 4 else 4 + width
    layer = tokens * per_token + scores * per_score
    experts = tokens * width * (4 * size.active_intermediate + 2 * max(size.routed, 1) * size.hidden)
    at_work = max(SCORES_AT_WORK * scores * max(width, per_score // 2), experts)
    if train.gradient_checkpointing:
        return layers * tokens * size.hidden * width + layer, at_work
    return layers * layer, at_work
