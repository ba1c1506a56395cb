"""What a merge adds, in a process of its own: `python -m gradelora.merge.adder BASE ADAPTER THREADS CHANNEL`.

Answers on the socket CHANNEL (a descriptor) until the other side closes it: gradelora.merge.apart.
"""

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradelora.errors import GradeloraError
from gradelora.merge.apart import Asked, Told, receive, send
from gradelora.merge.arithmetic import Arithmetic
from gradelora.merge.regions import Bench

Weight = tuple[Bench, Iterator[Any]]


def serve(channel: socket.socket, base: Path, adapter: Path, threads: int) -> None:
    """Make one piece for each message, until there are no more of them."""
    arithmetic, turn = Arithmetic(threads), threading.Lock()
    begun: dict[int, Weight] = {}
    while True:
        try:
            asked: Asked = receive(channel)
        except EOFError:
            return
        if asked.number not in begun:
            bench = Bench(base, adapter, arithmetic, turn)
            begun[asked.number] = bench, getattr(arithmetic, asked.method)(*asked.arguments, bench)
        told, parts = _next(*begun[asked.number])
        send(channel, told)
        for part in parts:
            channel.sendall(part)
        if told.sizes is None:
            begun.pop(asked.number)[0].close()


def _next(bench: Bench, pieces: Iterator[Any]) -> tuple[Told, tuple[memoryview, ...]]:
    try:
        piece = next(pieces, None)
    except (GradeloraError, OSError) as error:
        return Told(None, error=error), ()
    if piece is None:
        return Told(None), ()
    parts = piece if isinstance(piece, tuple) else (piece,)
    survivals = tuple(bench.survivals)
    bench.survivals.clear()
    return Told(tuple(part.nbytes for part in parts), survivals), parts


if __name__ == "__main__":
    # Ctrl-C ends whoever asks, and that ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[4])) as channel:
        serve(channel, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
