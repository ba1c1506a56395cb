"""What loading the base takes, in real ranks."""

from pathlib import Path

import pytest

from bench.bench_memory import loading
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
