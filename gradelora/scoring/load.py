"""Base and adapter in one load."""

from typing import Any, Literal

from gradelora.artifacts import Adapter, ModelSnapshot
from gradelora.model.adapter import load_adapter
from gradelora.model.load import load_base


def load_both(
    snapshot: ModelSnapshot,
    adapter: Adapter,
    *,
    weights: Literal["packed", "bf16"],
    precision: Literal["bf16", "fp32"],
    device: Literal["cuda", "cpu"],
) -> Any:
    """The base with the adapter on it, ready for inference: a PeftModel, whose adapter can be switched off."""
    base = load_base(snapshot.path, weights=weights, precision=precision, device=device)
    return load_adapter(base, adapter.path).eval()
