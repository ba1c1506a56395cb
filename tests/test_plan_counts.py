"""What the plan counts from descriptions alone equals what the libraries build, on the meta device."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3Config

from gradelora.config import LoraSettings
from gradelora.model.adapter import attach, parameter_counts
from gradelora.preflight.known import KNOWN, describe
from gradelora.preflight.size import size_of
from tests.described import LLAMA, QWEN

pytestmark = pytest.mark.slow
KINDS = {"gpt_oss": GptOssConfig, "llama": LlamaConfig, "qwen3": Qwen3Config}
MODELS = {**KNOWN, "owner/llama-8b": LLAMA, "owner/qwen3-4b": QWEN}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_base_and_adapter_are_those_of_the_meta_device(name: str) -> None:
    values: dict[str, Any] = {k: v for k, v in MODELS[name].items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(KINDS[MODELS[name]["model_type"]](**values))
        model.requires_grad_(False)
        counts = parameter_counts(attach(model, LoraSettings()))
    size = size_of(describe(name, MODELS[name]), LoraSettings())
    assert counts == (size.lora_parameters, size.parameters + size.lora_parameters)
    if name == "openai/gpt-oss-120b":
        assert counts == (5_971_968, 116_835_128_640), "as the tutorial prints them"
