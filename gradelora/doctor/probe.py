"""One process that measures its device: `python -m gradelora.doctor.probe REQUEST.json`.

One expert layer of gpt-oss-120b's shape, packed against dequantised, bit for bit; then rates.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradelora.artifacts import Frozen
from gradelora.calibration import Device, Precision

# gpt-oss's own: 2880 -> 2 x 2880 -> 2880, gated.
HIDDEN, INTERMEDIATE = 2880, 2880
TOKENS = {"cuda": 512, "cpu": 48}
ROWS = {"cuda": 8192, "cpu": 1024}
COPIED_BYTES = {"cuda": 2 * 2**30, "cpu": 2**28}
MEASURED_S = 1.0


class ProbeRequest(Frozen):
    """What to measure, and where the answer goes."""

    device: Device
    precision: Precision
    experts: int
    answer: Path


class Probed(Frozen):
    """`differs` names what of the layer is not equal, bit for bit; rates are per second."""

    gpu: str
    differs: tuple[str, ...]
    compared: int
    layer_s: float
    unpacked_per_s: float
    product_operations_per_s: float
    memory_bytes_per_s: float


def main(path: Path) -> int:
    """Measure, and write Probed to the answer."""
    import torch

    request = ProbeRequest.model_validate_json(path.read_text())
    torch.manual_seed(0)
    with torch.device(request.device):
        differs, compared, layer_s = compare_layer(request)
        probed = Probed(
            gpu=torch.cuda.get_device_name() if request.device == "cuda" else "",
            differs=differs,
            compared=compared,
            layer_s=layer_s,
            unpacked_per_s=unpacked_per_s(request),
            product_operations_per_s=product_operations_per_s(request),
            memory_bytes_per_s=memory_bytes_per_s(request),
        )
    request.answer.write_text(probed.model_dump_json())
    return 0


def dtype_of(precision: Precision) -> Any:
    """As torch names it."""
    from gradelora.model.load import DTYPES

    return DTYPES[precision]


def compare_layer(request: ProbeRequest) -> tuple[tuple[str, ...], int, float]:
    """(what differs, values compared, seconds of the packed layer forward and backward)."""
    import torch

    packed, dense = packed_layer(request), dense_layer(request)
    weights = {"gate_up_proj", "down_proj"}
    fill_alike(packed, dense, weights)
    config = packed.num_experts, min(4, packed.num_experts)
    tokens = TOKENS[request.device]
    hidden = torch.randn(tokens, HIDDEN, dtype=dtype_of(request.precision))
    routed = torch.rand(tokens, config[0]).topk(config[1]).indices
    routing = torch.softmax(torch.randn(tokens, config[1]), dim=-1).to(hidden.dtype)
    found, seconds = {}, 0.0
    for name, layer in (("dequantised", dense), ("packed", packed)):
        given = hidden.clone().requires_grad_()
        _wait(request.device)
        started = time.monotonic()
        out = layer(given, routed, routing)
        out.backward(torch.ones_like(out))
        _wait(request.device)
        seconds = time.monotonic() - started
        found[name] = {"output": out.detach(), "gradient of its input": given.grad}
    differs = [
        f"its {what}" for what in found["packed"] if not _same(found["packed"][what], found["dequantised"][what])
    ]
    differs += [name for name in sorted(weights) if not _same(unpacked(packed, name, request), getattr(dense, name))]
    compared = 2 * hidden.numel() + sum(getattr(dense, name).numel() for name in weights)
    return tuple(differs), compared, seconds


def packed_layer(request: ProbeRequest) -> Any:
    """PackedExperts of random bytes."""
    import torch

    from gradelora.model.packed import PackedExperts

    layer = PackedExperts(_config(request)).to(dtype=None)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("_scales"):
                parameter.copy_(torch.randint(115, 123, parameter.shape, dtype=torch.uint8))
            elif name.endswith("_blocks"):
                parameter.copy_(torch.randint(0, 256, parameter.shape, dtype=torch.uint8))
            else:
                parameter.data = torch.randn(parameter.shape).to(dtype_of(request.precision))
    return layer


def dense_layer(request: ProbeRequest) -> Any:
    """transformers' own experts, which the packed ones must equal."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    layer = GptOssExperts(_config(request)).to(dtype_of(request.precision)).requires_grad_(False)
    return layer.eval()


def fill_alike(packed: Any, dense: Any, weights: set[str]) -> None:
    """Give the dense layer the packed one's weights, dequantised by transformers' own converter."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    with torch.no_grad():
        for name in weights:
            blocks, scales = getattr(packed, f"{name}_blocks"), getattr(packed, f"{name}_scales")
            getattr(dense, name).copy_(convert_moe_packed_tensors(blocks.data, scales.data))
            getattr(dense, f"{name}_bias").copy_(getattr(packed, f"{name}_bias"))


def unpacked(packed: Any, name: str, request: ProbeRequest) -> Any:
    """One weight as gradelora dequantises it."""
    from gradelora.model.mxfp4 import dequantize

    blocks, scales = getattr(packed, f"{name}_blocks"), getattr(packed, f"{name}_scales")
    return dequantize(blocks.data, scales.data, dtype_of(request.precision))


def _config(request: ProbeRequest) -> Any:
    from transformers import GptOssConfig

    config = GptOssConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_local_experts=request.experts,
        num_experts_per_tok=min(4, request.experts),
    )
    config._experts_implementation = "grouped_mm"
    return config


def _same(one: Any, other: Any) -> bool:
    import torch

    bits = torch.int16 if one.dtype == torch.bfloat16 else torch.int32
    return one.shape == other.shape and torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def unpacked_per_s(request: ProbeRequest) -> float:
    """MXFP4 weights that become full ones in a second."""
    import torch

    from gradelora.model.mxfp4 import dequantize

    blocks = torch.randint(0, 256, (request.experts, 2 * INTERMEDIATE, HIDDEN // 32, 16), dtype=torch.uint8)
    scales = torch.randint(115, 123, blocks.shape[:-1], dtype=torch.uint8)
    dtype = dtype_of(request.precision)
    return 2 * blocks.numel() / fastest_s(lambda: dequantize(blocks, scales, dtype), request.device)


def product_operations_per_s(request: ProbeRequest) -> float:
    """Operations of a large matrix product, two a multiplication."""
    import torch

    rows = ROWS[request.device]
    left = torch.randn(rows, HIDDEN).to(dtype_of(request.precision))
    right = torch.randn(HIDDEN, 2 * INTERMEDIATE).to(left.dtype)
    return 2 * rows * HIDDEN * 2 * INTERMEDIATE / fastest_s(lambda: left @ right, request.device)


def memory_bytes_per_s(request: ProbeRequest) -> float:
    """Bytes read and written by a copy."""
    import torch

    source = torch.ones(COPIED_BYTES[request.device] // 4)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest_s(lambda: target.copy_(source), request.device)


def fastest_s(work: Callable[[], Any], device: Device) -> float:
    """Seconds of the fastest of several calls: other programs only ever slow one down."""
    work()
    times: list[float] = []
    until = time.monotonic() + MEASURED_S
    while len(times) < 3 or (time.monotonic() < until and len(times) < 50):
        _wait(device)
        started = time.monotonic()
        work()
        _wait(device)
        times.append(time.monotonic() - started)
    return min(times)


def _wait(device: Device) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
