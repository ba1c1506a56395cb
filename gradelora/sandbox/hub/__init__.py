"""A Hub on loopback that the unmodified huggingface_hub client accepts, with faults on demand."""

from gradelora.sandbox.hub.faults import (
    Cut,
    Empty,
    Fault,
    Flip,
    IgnoreRange,
    Short,
    Stall,
    Status,
    Throttle,
    WrongContentRange,
)
from gradelora.sandbox.hub.handler import Request
from gradelora.sandbox.hub.server import LoopbackHub

__all__ = [
    "Cut",
    "Empty",
    "Fault",
    "Flip",
    "IgnoreRange",
    "LoopbackHub",
    "Request",
    "Short",
    "Stall",
    "Status",
    "Throttle",
    "WrongContentRange",
]
