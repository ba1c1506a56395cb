"""Memory at the peak of training, a first formula; on a CPU run the host takes the GPU's part.

Per process: weights + the layer that is dequantised or gathered + LoRA with its optimizer +
activations + logits at supervised positions + allocator and context.  Activation counts follow
Korthikanti et al. 2022 (arXiv 2205.05198), section 4, with eager attention's score matrices.
"""

from gradelora.artifacts import Frozen
from gradelora.config import TrainConfig
from gradelora.hardware import Hardware
from gradelora.preflight.size import ModelSize

GB = 1e9
# A CUDA context with NCCL buffers; on a CPU the imports of torch, transformers and deepspeed.
CONTEXT_BYTES = {"cuda": 2_000_000_000, "cpu": 900_000_000}
# The allocator's slack on a GPU: the tutorial keeps 6 of 141 GB free.
FRAGMENTATION = 0.04
# {"score": 3} with its control tokens, rounded up.
TARGET_TOKENS = 16


class Need(Frozen):
    """One part of a sum, in bytes."""

    what: str
    bytes: int


class MemoryPlan(Frozen):
    """What one process needs at its peak beside what its device has."""

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
    def fits(self) -> bool:
        """Whether the peak stays within the device."""
        return self.needed_bytes <= self.available_bytes

    def spelled(self) -> str:
        """`208.1 of 150.8 GB (weights 233.7, ...)`: measured against needed."""
        parts = ", ".join(f"{n.what} {n.bytes / GB:.1f}" for n in self.needs)
        times = f"{self.processes_per_device} x " if self.processes_per_device > 1 else ""
        return f"{self.needed_bytes / GB:.1f} of {self.available_bytes / GB:.1f} GB ({times}{parts})"


def plan_memory(train: TrainConfig, max_length: int, size: ModelSize, hardware: Hardware) -> MemoryPlan:
    """The peak of one training process in the configured mode."""
    width = 2 if train.precision == "bf16" else 4
    needs = [
        Need(what="weights", bytes=_weight_bytes(train, size, width, hardware)),
        Need(what="one layer unpacked", bytes=_layer_bytes(train, size, width)),
        Need(what="LoRA and optimizer", bytes=size.lora_parameters * (width + width + 12)),
        Need(what="activations", bytes=_activation_bytes(train, max_length, size, width)),
        Need(what="logits", bytes=_logit_bytes(train, size)),
        Need(what="context", bytes=CONTEXT_BYTES[train.device]),
    ]
    on_gpu = train.device == "cuda"
    if on_gpu:
        needs.append(Need(what="fragmentation", bytes=int(FRAGMENTATION * sum(n.bytes for n in needs))))
    return MemoryPlan(
        mode=f"{train.weights} + {train.parallel}",
        device="each GPU" if on_gpu else "host",
        processes_per_device=1 if on_gpu else train.processes,
        available_bytes=hardware.gpu_bytes if on_gpu else hardware.host_bytes,
        needs=tuple(needs),
    )


def _weight_bytes(train: TrainConfig, size: ModelSize, width: int, hardware: Hardware) -> int:
    if train.weights == "packed":
        return size.expert_disk_bytes + width * size.other_parameters
    shares = {"zero2": 1, "zero3": train.processes, "layers": max(hardware.gpus, 1)}
    return width * size.parameters // shares[train.parallel]


def _layer_bytes(train: TrainConfig, size: ModelSize, width: int) -> int:
    """Experts of one layer in full width (packed), or one gathered layer (ZeRO-3)."""
    if train.weights == "packed":
        return width * size.expert_parameters // size.layers
    return width * size.parameters // size.layers if train.parallel == "zero3" else 0


def _activation_bytes(train: TrainConfig, max_length: int, size: ModelSize, width: int) -> int:
    rows = train.micro_batch_rows
    tokens = min(train.answers_per_row * max_length, train.tokens_per_row)
    attention = size.heads * size.head_dim
    per_token = 8 * size.hidden + 4 * attention + 3 * size.active_intermediate
    # Eager attention keeps scores, softmax (fp32) and its dropout for backward.
    per_layer = rows * (width * tokens * per_token + (4 + 2 * width) * size.heads * tokens**2)
    if train.gradient_checkpointing:
        return size.layers * rows * tokens * size.hidden * width + per_layer
    return size.layers * per_layer


def _logit_bytes(train: TrainConfig, size: ModelSize) -> int:
    """fp32 logits, their softmax and their gradient, at supervised positions alone."""
    return 3 * 4 * train.micro_batch_rows * train.answers_per_row * TARGET_TOKENS * size.vocabulary
