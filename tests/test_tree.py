"""A row in which answers share their question computes what separate rows compute."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradelora.config import LoraSettings
from gradelora.model.adapter import attach
from gradelora.model.load import load_base
from gradelora.model.tree import Masking, TokenTree, tree_batch, tree_inputs
from tests.tiny_models import save_gpt_oss, save_llama

PREFIX = list(range(20, 45))
ANSWERS = [[50, 51, 52, 3, 4], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 3, 5], [71, 3, 6]]
TARGET = 2


def double_model(folder: Path) -> Any:
    model = load_base(folder, weights="bf16", precision="fp32", device="cpu").double()
    # torch's grouped product knows no fp64.
    model.set_experts_implementation("eager")
    torch.manual_seed(1)
    model = attach(model, LoraSettings(dropout=0.0)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(exact_norm, module)
    return model.train()


def exact_norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMSNorm in fp64; transformers' own rounds to fp32 inside."""
    return module.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Window 8, sinks and YaRN: every path is longer than the window and than the original context."""
    return double_model(save_gpt_oss(tmp_path_factory.mktemp("gpt-oss")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return double_model(save_llama(tmp_path_factory.mktemp("llama")))


def gradients(model: Any, inputs: dict[str, Any], positions: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Gradients of the summed loss of `positions` (row 0: predicting index, token)."""
    model.zero_grad()
    logits = model(**inputs).logits[0]
    where, tokens = zip(*positions, strict=True)
    loss = torch.nn.functional.cross_entropy(logits[list(where)], torch.tensor(tokens), reduction="sum")
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


def separate(model: Any) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for answer in ANSWERS:
        ids = PREFIX + answer
        positions = [(i - 1, ids[i]) for i in range(len(ids) - TARGET, len(ids))]
        part = gradients(model, {"input_ids": torch.tensor([ids])}, positions)
        total = {n: total.get(n, 0) + g for n, g in part.items()}
    return total


def tree_row() -> tuple[TokenTree, list[tuple[int, int]]]:
    tree, positions = TokenTree(), []
    fork = tree.extend(-1, PREFIX)
    for answer in ANSWERS:
        last = tree.extend(fork, answer[:-TARGET])
        for token in answer[-TARGET:]:
            positions.append((last, token))
            last = tree.extend(last, [token])
    return tree, positions


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def shared(model: Any) -> dict[str, torch.Tensor]:
    tree, positions = tree_row()
    return gradients(model, tree_inputs([tree], pad_id=0, model=model), positions)


def test_shared_prefixes_give_the_gradients_of_separate_rows(gpt_oss: Any) -> None:
    one, other = separate(gpt_oss), shared(gpt_oss)
    assert len(one) == 17
    assert max(float(g.abs().max()) for g in one.values()) > 1
    assert largest_difference(one, other) < 1e-12


def test_shared_prefixes_give_the_gradients_of_separate_rows_on_a_dense_model(llama: Any) -> None:
    one, other = separate(llama), shared(llama)
    # Its softmax rounds to fp32 whatever the model's type is.
    assert largest_difference(one, other) < 1e-6 * max(float(g.abs().max()) for g in one.values())


def test_padding_changes_no_gradient(gpt_oss: Any) -> None:
    tree, positions = tree_row()
    padded = tree_batch([tree], pad_id=0, masking=Masking.of(gpt_oss), length=len(tree) + 7)
    assert padded["input_ids"].shape == (1, len(tree) + 7)
    assert largest_difference(shared(gpt_oss), gradients(gpt_oss, padded, positions)) < 1e-11


def test_positions_that_are_not_reset_at_a_branch_are_noticed(gpt_oss: Any) -> None:
    tree, positions = tree_row()
    inputs = tree_inputs([tree], pad_id=0, model=gpt_oss)
    inputs["position_ids"] = torch.arange(len(tree)).unsqueeze(0)
    assert largest_difference(separate(gpt_oss), gradients(gpt_oss, inputs, positions)) > 1e-6


def test_a_window_that_counts_indices_is_noticed(gpt_oss: Any) -> None:
    tree, positions = tree_row()
    inputs = tree_inputs([tree], pad_id=0, model=gpt_oss)
    index = np.arange(len(tree))
    near = torch.from_numpy(index[:, None] - index[None, :] < gpt_oss.config.sliding_window)
    full = inputs["attention_mask"]["full_attention"]
    inputs["attention_mask"]["sliding_attention"] = full.masked_fill(~near, torch.finfo(full.dtype).min)
    assert largest_difference(separate(gpt_oss), gradients(gpt_oss, inputs, positions)) > 1e-6


def test_branches_that_see_each_other_are_noticed(gpt_oss: Any) -> None:
    tree, positions = tree_row()
    inputs = tree_inputs([tree], pad_id=0, model=gpt_oss)
    lowest = torch.finfo(torch.float64).min
    causal = torch.triu(torch.full((len(tree), len(tree)), lowest, dtype=torch.float64), diagonal=1)
    inputs["attention_mask"]["full_attention"] = causal[None, None]
    assert largest_difference(separate(gpt_oss), gradients(gpt_oss, inputs, positions)) > 1e-6


def test_a_single_path_has_the_masks_that_transformers_makes(gpt_oss: Any) -> None:
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    tree = TokenTree()
    tree.extend(-1, PREFIX)
    ours = tree_inputs([tree], pad_id=0, model=gpt_oss)
    embeds = torch.zeros(1, len(PREFIX), 64, dtype=torch.float64)
    arguments = {
        "config": gpt_oss.config,
        "inputs_embeds": embeds,
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": ours["position_ids"],
    }
    assert torch.equal(ours["attention_mask"]["full_attention"], create_causal_mask(**arguments))
    assert torch.equal(ours["attention_mask"]["sliding_attention"], create_sliding_window_causal_mask(**arguments))
    assert ours["position_ids"].tolist() == [list(range(len(PREFIX)))]
