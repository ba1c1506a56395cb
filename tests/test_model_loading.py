"""What loading the base takes, in real ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.bench_memory import loading
from gradelora.model.heap import KERNEL_CACHES
from tests.tiny_models import save_gpt_oss

# 16 experts, 512 wide: the largest tensor is far above what the heap keeps anyway.
SHAPE = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 12, "num_local_experts": 16}
LARGEST_BYTES = 2 * 16 * 512 * 1024


@pytest.mark.slow
def test_a_rank_under_zero3_loads_its_share_of_the_files_values_and_a_few_tensors_not_the_model(tmp_path: Path) -> None:
    model = save_gpt_oss(tmp_path / "model", initializer_range=0.02, **SHAPE)
    found = loading("bf16", "zero3", model, tmp_path / "ranks.log")
    # The whole is twice `held`.  A gathered tensor is there up to three times; 20 MB are no tensors.
    assert found["held"] <= found["peak"] <= found["held"] + 5 * LARGEST_BYTES
    assert found["differing"] == 0
    assert found["after"] <= found["held"] + 2 * LARGEST_BYTES


# What a process does, as a measured child: its anonymous memory grows by what is printed, in MB.
CHILD = """
import torch
from gradelora.model.heap import few_kernels, no_holes
{prepare}
torch.set_num_threads(1)
anonymous = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024
weight, rows = torch.ones(256, 256, dtype=torch.bfloat16), torch.ones(400, 256, dtype=torch.bfloat16)
rows @ weight
before, kept = anonymous(), []
{work}
print(round(anonymous() - before))
"""
SHAPES_OF_EXPERTS = "for tokens in range(1, 400): rows[:tokens] @ weight"
# As under ZeRO-3: a share is cut out of a whole, each whole larger than the hole that the one before left.
SHARES = """
torch.ones(7 << 20)  # freed: glibc takes this size for one that comes and goes on the heap
for size in range(30):
    whole = torch.ones((1 << 20) + (size << 16))
    kept.append(whole[: len(whole) // 4].clone())
    del whole
before += sum(share.nbytes for share in kept) / 2**20
"""


@pytest.mark.slow
@pytest.mark.parametrize(("work", "prepare"), [(SHAPES_OF_EXPERTS, "few_kernels()"), (SHARES, "no_holes()")])
def test_a_process_on_a_cpu_keeps_neither_kernels_nor_holes(work: str, prepare: str) -> None:
    def grown(prepare: str) -> int:
        child = [sys.executable, "-c", CHILD.format(prepare=prepare, work=work)]
        # Another test of this process may have loaded a model, which sets what a child would inherit.
        env = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
        return int(subprocess.run(child, env=env, capture_output=True, text=True, check=True).stdout)

    assert grown(prepare) < 90
    assert grown("") > 2 * grown(prepare), "else there is nothing to prevent"
