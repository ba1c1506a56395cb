"""All shards of a merge, several at a time: while some wait for the disk, others read, add and hash."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path

from threadpoolctl import threadpool_limits

from gradelora.errors import Damaged
from gradelora.merge.arithmetic import Arithmetic
from gradelora.merge.blocks import create, reserve
from gradelora.merge.journal import Entry, Journal, is_whole
from gradelora.merge.regions import Bench, Product
from gradelora.merge.sealing import compare, entry_of, fill, flush, take_over

# Shards that are begun and not yet sealed: a kill costs those.
FEWEST_AT_ONCE, MOST_AT_ONCE, BYTES_AT_ONCE = 3, 8, 4 * 10**9


class Production:
    """Makes `products` in `out`, from the base's folder and the adapter's; `journal` knows what is done."""

    def __init__(self, base: Path, adapter: Path, out: Path, journal: Journal, arithmetic: Arithmetic) -> None:
        self.base, self.adapter, self.out, self.journal = base, adapter, out, journal
        self._arithmetic = arithmetic
        self._turn, self._stop = threading.Lock(), threading.Event()

    def run(self, products: Sequence[Product]) -> list[Entry]:
        """Seal every shard that is not yet sealed, in any order; the first failure stops the rest."""
        missing = [product for product in products if not self._is_kept(product)]
        if missing:
            with threadpool_limits(self._arithmetic.threads, user_api="blas"):
                self._make(missing)
        return [self.journal[product.shard.name] for product in products]

    def _is_kept(self, product: Product) -> bool:
        kept = self.journal.sealed(product.shard)
        if kept:
            print(f"merge: kept {product.shard.name}, sealed by an earlier attempt", flush=True)
        return kept

    def _make(self, missing: Sequence[Product]) -> None:
        at_once = BYTES_AT_ONCE // max(product.shard.size for product in missing)
        at_once = max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, at_once))
        with ThreadPoolExecutor(at_once) as sealers:
            waiting = [sealers.submit(self._seal, product) for product in missing]
            try:
                wait(waiting, return_when=FIRST_EXCEPTION)
            finally:
                # All is done, or one failed, or somebody wants the end: nobody writes a block more.
                self._stop.set()
                sealers.shutdown(cancel_futures=True)
        errors = [each.exception() for each in waiting if not each.cancelled()]
        for error in errors:
            # Those that were stopped tell of nothing.
            if error is not None and not isinstance(error, CancelledError):
                raise error

    def _seal(self, product: Product) -> None:
        with Bench(self.base, self.adapter, self._arithmetic, self._turn) as bench:
            entry = self._read(product, bench) or self._write(product, bench)
        self.journal.add(entry)
        print(f"merge: sealed {product.shard.name} ({product.shard.size / 1e9:.2f} GB)", flush=True)

    def _read(self, product: Product, bench: Bench) -> Entry | None:
        """The entry of a shard that was renamed before its hash was recorded; None where it is not there or damaged."""
        path = self.out / product.shard.name
        if not is_whole(self.out, product.shard):
            return None
        try:
            return compare(product, path, bench, self._go_on)
        except Damaged:
            # Its room is what the new one was promised.
            path.unlink()
            return None

    def _write(self, product: Product, bench: Bench) -> Entry:
        part = self.out / f"{product.shard.name}.part"
        file = create(part)
        try:
            reserve(file, product.shard.size)
            shared = take_over(product, file, self.base)
            sha256 = fill(product, file, shared, bench, self._go_on)
            mtime_ns = flush(product, file)
        finally:
            os.close(file)
        part.replace(self.out / product.shard.name)
        return entry_of(product, sha256, mtime_ns, bench)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise CancelledError
