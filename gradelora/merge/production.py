"""All shards of a merge: one thread copies ahead, some fill in and hash, others wait for the disk.

The disk writes from the first moment on, while another process still imports torch; nobody who
computes waits for it.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from gradelora.config import Runtime
from gradelora.errors import Damaged
from gradelora.merge.apart import Apart
from gradelora.merge.blocks import start_writing
from gradelora.merge.journal import Entry, Journal, is_whole
from gradelora.merge.regions import Adding, Bench, Product
from gradelora.merge.sealing import copy_ahead, fill_and_read_back

SEALERS = 2
# Shards that are copied but not yet hashed: as long as the kernel still holds them, none is read twice.
FEWEST_AHEAD, MOST_AHEAD, BYTES_AHEAD = 3, 8, 4 * 10**9


@dataclass(frozen=True)
class Written:
    """A shard that is being written: its descriptor, and when the disk has been told to begin."""

    file: int
    begun: "Future[None]"

    def close(self) -> None:
        """Let go of the file; its descriptor must outlive that call."""
        wait([self.begun])
        os.close(self.file)


class Production:
    """Makes `products` in `out`, from the base's folder and the adapter's; `journal` knows what is done."""

    def __init__(self, base: Path, adapter: Path, out: Path, journal: Journal, runtime: Runtime) -> None:
        self.base, self.adapter, self.out, self.journal = base, adapter, out, journal
        self._threads = runtime.threads or 1
        self._turn, self._stop = threading.Lock(), threading.Event()

    def run(self, products: Sequence[Product]) -> list[Entry]:
        """Seal every shard that is not yet sealed, in any order; the first failure stops the rest."""
        missing = [product for product in products if not self._is_kept(product)]
        if missing:
            with self._adding() as self._adder:
                self._make(missing)
        return [self.journal[product.shard.name] for product in products]

    def _make(self, missing: Sequence[Product]) -> None:
        ahead = max(FEWEST_AHEAD, min(MOST_AHEAD, BYTES_AHEAD // max(p.shard.size for p in missing)))
        self._ahead = threading.Semaphore(ahead)
        with (
            ThreadPoolExecutor(2 * MOST_AHEAD) as flushers,
            ThreadPoolExecutor(1) as copier,
            ThreadPoolExecutor(SEALERS) as sealers,
        ):
            self._flushers = flushers
            waiting = [sealers.submit(self._filled, p, copier.submit(self._copied, p)) for p in missing]
            try:
                for flushed in [each.result() for each in waiting]:
                    flushed.result()
            except BaseException:
                self._stop.set()
                sealers.shutdown(wait=False, cancel_futures=True)
                copier.shutdown(wait=False, cancel_futures=True)
                # One that waits for its turn to copy must wake up to see that it is over.
                self._ahead.release()
                # So must one that waits for a weight.
                if isinstance(self._adder, Apart):
                    self._adder.stop()
                raise

    @contextlib.contextmanager
    def _adding(self) -> "Iterator[Adding]":
        """Who adds: a process of its own, unless this one holds torch anyway."""
        if "torch" in sys.modules:
            from gradelora.merge.arithmetic import Arithmetic

            yield Arithmetic(self._threads)
            return
        with contextlib.closing(Apart(self.base, self.adapter, self._threads)) as apart:
            yield apart

    def _is_kept(self, product: Product) -> bool:
        kept = self.journal.sealed(product.shard)
        if kept:
            print(f"merge: kept {product.shard.name}, sealed by an earlier attempt", flush=True)
        return kept

    def _copied(self, product: Product) -> "Written | None":
        """The half-made shard; None where a whole one lies there, without its hash."""
        self._ahead.acquire()
        if self._stop.is_set():
            raise CancelledError
        if is_whole(self.out, product.shard):
            return None
        return self._begun(product)

    def _begun(self, product: Product) -> "Written":
        """Copied, and on its way to the disk while it is still filled in."""
        file = copy_ahead(product, self.base, self._part(product))
        return Written(file, self._flushers.submit(start_writing, file))

    def _filled(self, product: Product, copied: "Future[Written | None]") -> "Future[None]":
        written = copied.result()
        try:
            if written is None:
                entry = self._read(product)
                if entry is not None:
                    return self._flushers.submit(self._remember, product, entry)
                # Its room is what the new one was promised.
                (self.out / product.shard.name).unlink()
                written = self._begun(product)
            try:
                with self._bench() as bench:
                    entry = fill_and_read_back(product, written.file, bench, write=True)
            except BaseException:
                written.close()
                raise
            return self._flushers.submit(self._flushed, product, written, entry)
        finally:
            self._ahead.release()

    def _read(self, product: Product) -> Entry | None:
        """The entry of a shard that was renamed before its hash was recorded, or None where it is damaged."""
        try:
            with self._bench() as bench, (self.out / product.shard.name).open("rb") as there:
                return fill_and_read_back(product, there.fileno(), bench, write=False)
        except Damaged:
            return None

    def _flushed(self, product: Product, written: "Written", entry: Entry) -> None:
        try:
            written.begun.result()
            os.fsync(written.file)
        finally:
            written.close()
        self._part(product).replace(self.out / product.shard.name)
        self._remember(product, entry)

    def _remember(self, product: Product, entry: Entry) -> None:
        self.journal.add(entry)
        print(f"merge: sealed {product.shard.name} ({product.shard.size / 1e9:.2f} GB)", flush=True)

    def _bench(self) -> Bench:
        return Bench(self.base, self.adapter, self._adder, self._turn)

    def _part(self, product: Product) -> Path:
        return self.out / f"{product.shard.name}.part"
