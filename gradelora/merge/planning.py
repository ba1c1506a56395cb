"""Which shards the merged model has, and what fills each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

from gradelora.errors import UnsupportedModel
from gradelora.merge.checkpoint import Shard, Tensor, header_of
from gradelora.merge.regions import Bench, Copied, Made, Product
from gradelora.merge.targets import BLOCKS_SUFFIX, SCALES_SUFFIX, ExpertTarget, Target, Targets

Pieces = Callable[[Bench], Iterator[memoryview]]
Format = Literal["base", "bf16"]


def plan_products(shards: Sequence[Shard], targets: Targets, dtype: Format) -> tuple[Product, ...]:
    """A product for each of the base's shards; with bf16 one without tensors left is dropped."""
    linear: dict[str, Pieces] = {t.weight.name: partial(_linear, t) for t in targets.linear}
    if dtype == "base" or not any(_is_blocks(tensor) for shard in shards for tensor in shard.tensors):
        makers = linear | {name: pieces for t in targets.experts for name, pieces in _in_place(t).items()}
        return tuple(_same_layout(shard, makers) for shard in shards)
    makers = linear | {t.name: partial(_bf16_experts, t.shape, t.stored, t) for t in targets.experts}
    scales = {t.name: t for shard in shards for t in shard.tensors if t.name.endswith(SCALES_SUFFIX)}
    products = (_dequantised(shard, makers, scales) for shard in shards)
    return tuple(product for product in products if product.shard.tensors)


def refuse_lossy(targets: Targets, dtype: Format, floor: float | None) -> None:
    """Raise UnsupportedModel where a sum would be rounded to MXFP4 and no loss was allowed."""
    packed = [t.name for t in targets.experts if len(t.stored) == 2]
    if packed and dtype == "base" and floor is None:
        raise UnsupportedModel(
            f"{packed[0]} and {len(packed) - 1} more: MXFP4 keeps 4 bits of a weight and cannot hold the sum exactly; "
            "set merge.dtype=bf16, accept a loss with merge.min_delta_survival, or serve base and adapter side by side"
        )


def _is_blocks(tensor: Tensor) -> bool:
    return tensor.name.endswith(BLOCKS_SUFFIX)


def _in_place(target: ExpertTarget) -> dict[str, Pieces]:
    """Who makes each stored tensor of an expert weight, in the base's own format."""
    if len(target.stored) == 1:
        return {target.name: partial(_bf16_experts, target.shape, target.stored, target)}
    blocks, scales = target.stored
    return {blocks.name: partial(_blocks, target), scales.name: partial(_scales, target)}


def _linear(target: Target, bench: Bench) -> Iterator[memoryview]:
    yield from bench.arithmetic.merged(target, bench)


def _blocks(target: ExpertTarget, bench: Bench) -> Iterator[memoryview]:
    """The blocks; the scales that belong to them are kept for when their turn comes."""
    scales = []
    for blocks, scale in bench.arithmetic.requantized(target, bench):
        scales.append(scale)
        yield blocks
    bench.kept[target.stored[1].name] = scales


def _scales(target: ExpertTarget, bench: Bench) -> Iterator[memoryview]:
    """The scales: as kept, or made again where they lie in another shard than the blocks, or before them."""
    kept = bench.kept.pop(target.stored[1].name, None)
    if kept is not None:
        yield from kept
        return
    counted = len(bench.survivals)
    yield from (scale for _, scale in bench.arithmetic.requantized(target, bench))
    # They are told where the blocks are made.
    del bench.survivals[counted:]


def _bf16_experts(
    shape: tuple[int, int, int], stored: tuple[Tensor, ...], target: ExpertTarget | None, bench: Bench
) -> Iterator[memoryview]:
    yield from bench.arithmetic.experts_bf16(shape, stored, target, bench)


def _same_layout(shard: Shard, makers: Mapping[str, Pieces]) -> Product:
    regions: list[Copied | Made] = []
    position = 0
    for tensor in shard.tensors:
        if tensor.name in makers:
            if tensor.start > position:
                regions.append(Copied(position, tensor.start, position))
            regions.append(Made(tensor.start, tensor.end, tensor.name, makers[tensor.name]))
            position = tensor.end
    if shard.size > position:
        regions.append(Copied(position, shard.size, position))
    return Product(shard, tuple(regions))


def _dequantised(shard: Shard, makers: Mapping[str, Pieces], scales: Mapping[str, Tensor]) -> Product:
    """The shard with every MXFP4 weight as one bf16 tensor in the place of its blocks."""
    sources = [t for t in shard.tensors if not t.name.endswith(SCALES_SUFFIX)]
    specs = [_spec(t) for t in sources]
    header, places = header_of(specs)
    regions: list[Copied | Made] = [Made(0, len(header), "header", partial(_bytes, header))]
    tensors = []
    for tensor, (name, dtype, shape), (start, end) in zip(sources, specs, places, strict=True):
        tensors.append(Tensor(name=name, file=shard.name, dtype=dtype, shape=shape, start=start, end=end))
        if name in makers:
            regions.append(Made(start, end, name, makers[name]))
        elif _is_blocks(tensor):
            E, K, R = shape
            stored = (tensor, scales[name + SCALES_SUFFIX])
            regions.append(Made(start, end, name, partial(_bf16_experts, (E, K, R), stored, None)))
        else:
            regions.append(Copied(start, end, tensor.start))
    size = places[-1][1] if places else len(header)
    return Product(Shard(name=shard.name, size=size, tensors=tuple(tensors)), tuple(regions))


def _spec(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    if not _is_blocks(tensor):
        return tensor.name, tensor.dtype, tensor.shape
    E, R, G, B = tensor.shape
    return tensor.name.removesuffix(BLOCKS_SUFFIX), "BF16", (E, G * B * 2, R)


def _bytes(data: bytes, bench: Bench) -> Iterator[memoryview]:  # noqa: ARG001
    yield memoryview(bytearray(data))
