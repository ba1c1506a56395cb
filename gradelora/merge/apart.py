"""The sums in a process of their own: torch takes seconds to import, and nobody who copies waits for it.

That process (gradelora.merge.adder) reads base and adapter and hands back bytes.  It writes no
file, so it may be killed at any moment, and it ends by itself when whoever asks it has died.
"""

import itertools
import pickle
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradelora import launch
from gradelora.errors import ChildFailed
from gradelora.merge.checkpoint import Tensor
from gradelora.merge.regions import Bench, Survival
from gradelora.merge.targets import ExpertTarget, Target

LENGTH_BYTES = 8


@dataclass(frozen=True)
class Asked:
    """The next piece of weight `number`; the first time also who makes it (a method of Arithmetic) of what."""

    number: int
    method: str = ""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Told:
    """A piece: the sizes of its parts, whose bytes follow.  None: there is no more."""

    sizes: tuple[int, ...] | None
    survivals: tuple[Survival, ...] = ()
    error: Exception | None = field(default=None)


class Apart:
    """What Arithmetic makes, made by another process."""

    def __init__(self, base: Path, adapter: Path, threads: int) -> None:
        self._channel, there = socket.socketpair()
        with there:
            arguments = (str(base), str(adapter), str(threads), str(there.fileno()))
            self._process = subprocess.Popen(
                launch.python("-m", "gradelora.merge.adder", *arguments),
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._numbers = itertools.count()

    def merged(self, target: Target, bench: Bench) -> Iterator[memoryview]:
        """The new data of `target.weight`, some rows at a time."""
        yield from (data for (data,) in self._pieces(bench, "merged", target))

    def requantized(self, target: ExpertTarget, bench: Bench) -> Iterator[tuple[memoryview, memoryview]]:
        """Blocks and scales of one expert after another; what they keep of the update goes to `bench`."""
        yield from ((blocks, scales) for blocks, scales in self._pieces(bench, "requantized", target))

    def experts_bf16(
        self, shape: tuple[int, int, int], stored: tuple[Tensor, ...], target: ExpertTarget | None, bench: Bench
    ) -> Iterator[memoryview]:
        """One expert's matrix after another, in bf16."""
        yield from (data for (data,) in self._pieces(bench, "experts_bf16", shape, stored, target))

    def stop(self) -> None:
        """End the process; whoever waits for a piece gets ChildFailed."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """The same when nobody waits any more."""
        self.stop()
        self._channel.close()

    def _pieces(self, bench: Bench, method: str, *arguments: object) -> Iterator[list[memoryview]]:
        asked = Asked(next(self._numbers), method, arguments)
        while True:
            with bench.turn:
                told, parts = self._answer(asked)
            if told.error is not None:
                raise told.error
            if told.sizes is None:
                return
            bench.survivals.extend(told.survivals)
            yield parts
            asked = Asked(asked.number)

    def _answer(self, asked: Asked) -> tuple[Told, list[memoryview]]:
        try:
            send(self._channel, asked)
            told: Told = receive(self._channel)
            return told, [receive_bytes(self._channel, size) for size in told.sizes or ()]
        except (EOFError, ConnectionError) as error:
            code = self._process.wait()
            raise ChildFailed(
                f"the process that adds the adapter ended with exit code {code}; its last words stand above; "
                "free memory if it was killed (-9), and run again"
            ) from error


def send(channel: socket.socket, message: Asked | Told) -> None:
    """One message; raises ConnectionError where nobody receives it."""
    text = pickle.dumps(message)
    channel.sendall(len(text).to_bytes(LENGTH_BYTES, "little") + text)


def receive(channel: socket.socket) -> Any:
    """The next message.  Raises EOFError where the other side has ended."""
    size = int.from_bytes(receive_bytes(channel, LENGTH_BYTES), "little")
    # Both ends are this program.
    return pickle.loads(receive_bytes(channel, size))


def receive_bytes(channel: socket.socket, size: int) -> memoryview:
    """So many bytes, in memory of their own.  Raises EOFError where the other side has ended."""
    data = memoryview(bytearray(size))
    rest = data
    while rest:
        count = channel.recv_into(rest, flags=socket.MSG_WAITALL)
        if count == 0:
            raise EOFError(f"{len(rest)} bytes short")
        rest = rest[count:]
    return data
