"""merge: the adapter added to the base's weights, in the base's own format or in bf16.

Only the weights that LoRA touches are rewritten; everything else, MXFP4 experts included, is
copied byte for byte.  Memory is that of a part of a weight, whatever the model's size.  What
comes out counts only when it scores as base and adapter do.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gradelora.artifacts import (
    ASIDE,
    Adapter,
    Agreed,
    EncodedDataset,
    EvalReport,
    FileEntry,
    MergedModel,
    ModelSnapshot,
    sha256_text,
)
from gradelora.config import MergeStageConfig, Runtime
from gradelora.errors import MergeDiffers, NotEnoughDisk, UnsupportedModel
from gradelora.merge.arithmetic import Arithmetic, products_differ
from gradelora.merge.blocks import FULL
from gradelora.merge.checkpoint import read_checkpoint
from gradelora.merge.journal import Entry, Journal, is_whole, part_bytes
from gradelora.merge.planning import plan_products, refuse_lossy
from gradelora.merge.production import Production
from gradelora.merge.rest import CONFIG, write_rest
from gradelora.merge.sealing import read_again
from gradelora.merge.targets import Targets, read_targets, refuse_tied
from gradelora.receipt import fsync

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradelora.merge.regions import Product, Survival

VERSION = 2
RESUMES = True


def merge(
    config: MergeStageConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    report: EvalReport,
    data: EncodedDataset,
    *,
    out: Path,
    runtime: Runtime,
) -> MergedModel:
    """A checkpoint like `snapshot` whose targeted weights hold the adapter, resumed by shard.

    `out` cannot be loaded before its end: config.json gets there last, after every shard was
    flushed, read back from the disk, and after the model scored `config.verify_items` items as
    `report` says that base and adapter do; with `verify_items=0` neither is done.
    Raises UnsupportedModel for what cannot be merged exactly, KeyMismatch for an adapter tensor
    without a weight, NotEnoughDisk, Damaged, MergeDiffers.
    """
    _refuse_strangers(snapshot, adapter)
    shards = read_checkpoint(snapshot.path)
    targets = read_targets(adapter.path, shards)
    refuse_tied(targets, snapshot.path)
    refuse_lossy(targets, config.dtype, config.min_delta_survival)
    products = plan_products(shards, targets, config.dtype)
    (out / CONFIG).unlink(missing_ok=True)
    with _full_disk_told(out):
        journal = Journal(out, identity_of(config, snapshot.digest, adapter.digest))
        _check_disk(out, [p for p in products if not journal.sealed(p.shard) and not is_whole(out, p.shard)])
        entries = _sealed(config, snapshot.path, adapter.path, out, journal, targets, products, runtime.threads or 1)
        survivals = [survival for entry in entries for survival in entry.survivals]
        least = _least_survival(survivals, config.min_delta_survival)
        files = [FileEntry.model_validate(entry.model_dump(exclude={"survivals"})) for entry in entries]
        packed = config.dtype == "base"
        files += write_rest(snapshot, out, [product.shard for product in products], survivals, packed=packed)
    if config.verify_items:
        read_again(out, entries)
    agreed = _agreed(config, report, data, out, runtime)
    (out / ASIDE / CONFIG).replace(out / CONFIG)
    fsync(out)
    return MergedModel(
        path=out,
        files=tuple(sorted(files, key=lambda f: f.name)),
        repo_id=snapshot.repo_id,
        commit=snapshot.commit,
        merged_tensors=len(targets.linear) + len(targets.experts),
        dtype=config.dtype,
        least_delta_survival=least,
        agreed=agreed,
    )


def _refuse_strangers(snapshot: ModelSnapshot, adapter: Adapter) -> None:
    """Raise UnsupportedModel for an adapter of another base, and for a base that is no model."""
    if (adapter.repo_id, adapter.commit) != (snapshot.repo_id, snapshot.commit):
        raise UnsupportedModel(
            f"the adapter was trained on {adapter.repo_id}@{adapter.commit}, the base is "
            f"{snapshot.repo_id}@{snapshot.commit}; merge it into the base that it was trained on"
        )
    if not (snapshot.path / CONFIG).exists():
        raise UnsupportedModel(f"{snapshot.path}: has no {CONFIG}; fetch the base model again")


def _sealed(
    config: MergeStageConfig,
    base: Path,
    adapter: Path,
    out: Path,
    journal: Journal,
    targets: Targets,
    products: "Sequence[Product]",
    threads: int,
) -> list[Entry]:
    """Every shard, made by numpy; where the verification shows that torch has other bits, by torch."""
    entries = Production(base, adapter, out, journal, Arithmetic(threads)).run(products)
    if config.verify_items and products_differ(targets.linear, adapter, threads):
        print("merge: numpy multiplies otherwise than torch on this processor; making the shards by torch", flush=True)
        journal.forget()
        entries = Production(base, adapter, out, journal, Arithmetic(threads, by_torch=True)).run(products)
    return entries


def identity_of(config: MergeStageConfig, snapshot: str, adapter: str) -> str:
    """What the shards depend on, of digests: nothing of how they are judged, so that they outlive another verdict."""
    return sha256_text(f"{VERSION} {config.dtype} {snapshot} {adapter}")


def _agreed(
    config: MergeStageConfig, report: EvalReport, data: EncodedDataset, out: Path, runtime: Runtime
) -> Agreed | None:
    if not config.verify_items:
        return None
    from gradelora.merge.verify import verify

    return verify(config, report, data, out, runtime)


@contextlib.contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Raise NotEnoughDisk where something else filled the disk meanwhile, or a quota ended."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NotEnoughDisk(
            f"{out}: {os.strerror(error.errno)} while the merged model was written; free space, set store.root to a "
            "larger file system, or merge.enabled=false; the shards that are sealed are kept"
        ) from error


def _least_survival(survivals: "Sequence[Survival]", floor: float | None) -> float | None:
    """What the worst matrix kept of its update.  Raises MergeDiffers where that is below the floor."""
    kept = [one for one in survivals if one.survival is not None]
    if not kept:
        return None
    worst = min(kept, key=lambda one: one.survival or 0.0)
    assert worst.survival is not None
    if floor is not None and worst.survival < floor:
        below = sum(one.survival < floor for one in kept if one.survival is not None)
        raise MergeDiffers(
            f"{below} of {len(kept)} expert matrices keep less of their update than merge.min_delta_survival={floor:g} "
            f"when they are rounded to MXFP4; the worst is {worst.parameter}, expert {worst.expert}: "
            f"{worst.survival:.4f} survives, {worst.projection:.4f} along the update; "
            "set merge.dtype=bf16, lower the floor, or serve base and adapter side by side"
        )
    return worst.survival


def _check_disk(out: Path, missing: "Sequence[Product]") -> None:
    """Raise NotEnoughDisk before a byte is written that could not be followed by the last one."""
    needed = sum(product.shard.size for product in missing) - part_bytes(out)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for the merged model; "
            "free space, set store.root to a larger file system, or merge.enabled=false"
        )
