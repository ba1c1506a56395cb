"""What every byte of a merged shard is: a byte of the base, or part of a weight that is made anew."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gradelora.artifacts import Frozen
from gradelora.merge.checkpoint import Shard
from gradelora.merge.mapped import Mapped
from gradelora.merge.targets import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from gradelora.merge.arithmetic import Arithmetic


class Survival(Frozen):
    """How much of its update one expert's matrix kept when it was rounded to MXFP4 again.

    D is the update and C what the stored matrix really changed by: `survival` is
    1 - |C - D| / |D| (1: all of it, 0: as if nothing was added, below 0: further from the sum
    than the base is), `projection` <C, D> / <D, D>, `delta_norm` |D|.  None where D is zero.
    """

    parameter: str
    expert: int
    delta_norm: float
    survival: float | None
    projection: float | None


class Bench:
    """What one shard's weights are made with: open files, who adds, and what is remembered meanwhile.

    `turn` lets one part be made at a time, so that memory is that of one.
    """

    def __init__(self, base: Path, adapter: Path, arithmetic: "Arithmetic", turn: threading.Lock) -> None:
        self._folders = {"base": base, "adapter": adapter}
        self.arithmetic, self.turn = arithmetic, turn
        self._open: dict[Path, int] = {}
        self._mapped: dict[str, Mapped] = {}
        self.kept: dict[str, Sequence[memoryview]] = {}
        self.survivals: list[Survival] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for file in self._open.values():
            os.close(file)
        self._open.clear()
        self._mapped.clear()

    @property
    def adapter(self) -> int:
        """The adapter's weights, open for reading."""
        return self._descriptor(self._folders["adapter"] / ADAPTER_WEIGHTS)

    def base(self, shard: str) -> int:
        """A shard of the base, open for reading."""
        return self._descriptor(self._folders["base"] / shard)

    def mapped(self, shard: str) -> Mapped:
        """A shard of the base as memory."""
        if shard not in self._mapped:
            self._mapped[shard] = Mapped(self.base(shard))
        return self._mapped[shard]

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]


@dataclass(frozen=True)
class Copied:
    """Bytes [start, end) of the merged shard are those of the base's shard from `source` on."""

    start: int
    end: int
    source: int


@dataclass(frozen=True)
class Made:
    """Bytes [start, end) are made anew, in writable pieces; `name` is the tensor's."""

    start: int
    end: int
    name: str
    pieces: Callable[[Bench], Iterator[memoryview]]


@dataclass(frozen=True)
class Product:
    """One shard of the merged model, and the regions that fill it without a gap."""

    shard: Shard
    regions: tuple[Copied | Made, ...]
