"""Sizes of a model, from its config and its safetensors headers alone."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from gradelora.artifacts import BaseModel, Frozen, TensorInfo
from gradelora.config import LoraSettings
from gradelora.errors import UnsupportedModel

BLOCKS, SCALES = "_blocks", "_scales"
# What other families call the same number.
SPELLINGS = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "intermediate_size": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "vocab_size": ("vocab_size",),
}
ROUTED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
# Of these the formulas were held against what the libraries build or training takes.
KINDS = frozenset({"gpt_oss", "llama", "qwen2", "qwen3"})
# Head widths in use lie between 64 and 256; the smallest gives the most heads, so the most scores.
SMALLEST_HEAD = 64


class ModelSize(Frozen):
    """Counts of parameters, bytes on disk, and the widths that activations follow.

    `largest_tensor`, `largest_packed` count parameters; `lora_inputs` adds up the inputs of all
    targeted matrices, `lora_experts` the parameters of targeted experts; `routed` is the number of
    experts that see a token, 0 in a dense model.  `narrow_scores`: attention keeps its scores in
    the model's own type; others keep them in fp32 beside it.  `assumed` names what config.json
    does not say: then all that follows from it is an upper bound.
    """

    parameters: int
    disk_bytes: int
    expert_parameters: int
    expert_disk_bytes: int
    lora_parameters: int
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    active_intermediate: int
    vocabulary: int
    lora_tensors: int = 0
    lora_inputs: int = 0
    lora_experts: int = 0
    experts: int = 1
    routed: int = 0
    largest_tensor: int = 0
    largest_packed: int = 0
    active_parameters: int = 0
    embedding_parameters: int = 0
    tied_parameters: int = 0
    narrow_scores: bool = True
    model_type: str = ""
    assumed: tuple[str, ...] = ()

    @property
    def bf16_bytes(self) -> int:
        """All weights at two bytes each."""
        return 2 * self.parameters

    def merged_bytes(self, dtype: Literal["base", "bf16"]) -> int:
        """Of a merged model's files."""
        return self.bf16_bytes if dtype == "bf16" else self.disk_bytes

    @property
    def other_parameters(self) -> int:
        """All but the experts that are kept packed."""
        return self.parameters - self.expert_parameters

    @property
    def layer_parameters(self) -> int:
        """Of one layer, rounded up."""
        return -(-(self.parameters - self.embedding_parameters) // self.layers)


def size_of(base: BaseModel, lora: LoraSettings) -> ModelSize:
    """Measure a base model and the adapter that `lora` would put on it.

    Raises UnsupportedModel for a LoRA target that matches no weight.
    """
    widths = Widths(base)
    experts = [t for t in base.tensors if t.name.endswith((BLOCKS, SCALES))]
    embedding = sum(math.prod(t.shape) for t in base.tensors if widths["vocab_size"] in t.shape and len(t.shape) == 2)
    targeted = list(lora_matrices(base.tensors, lora))
    parameters, packed = sum(map(parameters_of, base.tensors)), sum(map(parameters_of, experts))
    # Those that a router chooses from, in whatever form they are kept.
    of_experts = sum(parameters_of(t) for t in base.tensors if ".experts." in t.name) if widths.experts > 1 else 0
    heads = widths["num_attention_heads"]
    return ModelSize(
        parameters=parameters,
        disk_bytes=sum(t.nbytes for t in base.tensors),
        expert_parameters=packed,
        expert_disk_bytes=sum(t.nbytes for t in experts),
        lora_parameters=sum(matrix.parameters for matrix in targeted),
        layers=widths["num_hidden_layers"],
        hidden=widths["hidden_size"],
        heads=heads,
        key_value_heads=widths.config.get("num_key_value_heads") or heads,
        head_dim=widths.config.get("head_dim") or max(1, widths["hidden_size"] // heads),
        active_intermediate=widths.active * widths["intermediate_size"],
        vocabulary=widths["vocab_size"],
        lora_tensors=2 * len(targeted),
        lora_inputs=sum(matrix.columns for matrix in targeted if matrix.experts == 1),
        lora_experts=sum(m.experts * m.rows * m.columns for m in targeted if m.experts > 1),
        experts=widths.experts,
        routed=widths.active if widths.experts > 1 else 0,
        largest_packed=max(map(parameters_of, experts), default=0),
        largest_tensor=max(map(parameters_of, base.tensors)),
        active_parameters=parameters - of_experts + of_experts * widths.active // widths.experts,
        embedding_parameters=embedding,
        tied_parameters=embedding if widths.config.get("tie_word_embeddings") else 0,
        narrow_scores=widths.config.get("model_type") == "gpt_oss",
        model_type=str(base.config.get("model_type") or ""),
        assumed=tuple(widths.assumed),
    )


class Widths:
    """The numbers of config.json under one name each; what is missing is bounded by the tensors' shapes."""

    def __init__(self, base: BaseModel) -> None:
        config = base.config
        # Models that see keep their language part's numbers a level below.
        self.config: Mapping[str, Any] = config.get("text_config") or config
        self.assumed: list[str] = []
        self._tensors = base.tensors
        self._found: dict[str, int] = {}
        for name in SPELLINGS:
            self._found[name] = self._read(name)

    def __getitem__(self, name: str) -> int:
        return self._found[name]

    @property
    def active(self) -> int:
        """Experts that see a token; 1 in a dense model."""
        return self._first(ROUTED)

    @property
    def experts(self) -> int:
        """Experts of a layer; 1 in a dense model."""
        return self._first(EXPERTS)

    def _first(self, names: Iterable[str]) -> int:
        return next((int(self.config[name]) for name in names if self.config.get(name)), 1)

    def _read(self, name: str) -> int:
        for spelling in SPELLINGS[name]:
            value = self.config.get(spelling)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        bound = self._bound(name)
        self.assumed.append(f"{name} at most {bound}")
        return bound

    def _bound(self, name: str) -> int:
        """No less than the truth can be, by the shapes alone."""
        matrices = [t.shape for t in self._tensors if len(t.shape) >= 2] or [(1, 1)]
        if name == "num_hidden_layers":
            return max(1, len({number for t in self._tensors for number in re.findall(r"\.(\d+)\.", t.name)[:1]}))
        if name == "hidden_size":
            return int(min(max(matrices, key=lambda shape: shape[0] * shape[1])[:2]))
        if name == "num_attention_heads":
            return max(1, self["hidden_size"] // SMALLEST_HEAD)
        inside = [s for s, t in zip(matrices, (t for t in self._tensors if len(t.shape) >= 2), strict=False)
                  if re.search(r"\.\d+\.", t.name)]  # fmt: skip
        chosen = (inside or matrices) if name == "intermediate_size" else matrices
        return int(max(max(shape) for shape in chosen))


def parameters_of(tensor: TensorInfo) -> int:
    """A byte of MXFP4 blocks holds two parameters; a scale is none."""
    count = math.prod(tensor.shape)
    if tensor.name.endswith(BLOCKS):
        return 2 * count
    return 0 if tensor.name.endswith(SCALES) else count


class LoraMatrix(NamedTuple):
    """A[rank, columns] and B[rows, rank] on one matrix or on one layer's stack of experts, by PEFT's module name."""

    module: str
    rows: int
    columns: int
    rank: int
    experts: int = 1

    @property
    def parameters(self) -> int:
        """Of both factors."""
        return self.rank * (self.rows + self.columns)


def lora_matrices(tensors: Iterable[TensorInfo], lora: LoraSettings) -> Iterator[LoraMatrix]:
    """Everything that the adapter adds to.  Raises UnsupportedModel for a target without a weight."""
    missing = {*lora.target_modules, *lora.target_parameters}
    for tensor in tensors:
        parts = tensor.name.split(".")
        if parts[-1] == "weight" and len(tensor.shape) == 2 and parts[-2] in lora.target_modules:
            missing.discard(parts[-2])
            yield LoraMatrix(tensor.name.removesuffix(".weight"), tensor.shape[0], tensor.shape[1], lora.r)
        elif not tensor.name.endswith(SCALES):
            named = [t for t in lora.target_parameters if f".{tensor.name.removesuffix(BLOCKS)}".endswith(f".{t}")]
            if named and len(tensor.shape) >= 3:
                missing.difference_update(named)
                yield _expert_matrix(tensor, lora)
    if missing:
        raise UnsupportedModel(
            f"train.lora.target_modules and target_parameters: {', '.join(sorted(missing))} match no weight "
            "of the model; remove them"
        )


def _expert_matrix(tensor: TensorInfo, lora: LoraSettings) -> LoraMatrix:
    """A layer's experts, [E, in, out], or in MXFP4 [E, out, in / 32, 16]; each has ranks of its own."""
    name = tensor.name.removesuffix(BLOCKS)
    if name == tensor.name:
        experts, columns, rows = tensor.shape
    else:
        experts, rows, groups, pairs = tensor.shape
        columns = 2 * groups * pairs
    # PEFT wraps a module once a parameter, the first one innermost (see gradelora.merge.targets).
    module, _, leaf = name.rpartition(".")
    both = leaf == "gate_up_proj" and any(t.rpartition(".")[2] == "down_proj" for t in lora.target_parameters)
    return LoraMatrix(module + ".base_layer" * both, rows, columns, lora.r * experts, experts)
