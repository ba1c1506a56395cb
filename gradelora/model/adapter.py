"""LoRA adapters on a frozen base: attached, loaded, and their keys checked (Hu et al. 2021; PEFT)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open

from gradelora.config import LoraSettings
from gradelora.errors import BadConfig, KeyMismatch, UnsupportedModel
from gradelora.model.keys import check_keys

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The settings as PEFT spells them."""
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        target_parameters=list(settings.target_parameters) or None,
        use_rslora=settings.use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def attach(model: Any, settings: LoraSettings) -> PeftModel:
    """A fresh adapter on `model`; seed the generators first.

    Raises BadConfig for a target that names no module, or no parameter, of the model.
    """
    modules = _lost(settings.target_modules, (name for name, _ in model.named_modules()))
    if modules:
        raise BadConfig(
            f"train.lora.target_modules: {', '.join(modules)} match no module of {type(model).__name__}; "
            f"its layers have {', '.join(linear_names(model))}"
        )
    parameters = _lost(settings.target_parameters, (name for name, _ in model.named_parameters()))
    if parameters:
        raise BadConfig(
            f"train.lora.target_parameters: {', '.join(parameters)} match no parameter of {type(model).__name__}; "
            f"its experts have {', '.join(expert_names(model)) or 'none'}"
        )
    return get_peft_model(model, lora_config(settings))


def _lost(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """The targets that end no name; PEFT is silent about them where another one is found."""
    known = list(names)
    return [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in known)]


def expert_names(model: Any) -> list[str]:
    """The last parts of the names of all weights that stand for several experts: [experts, in, out]."""
    found = {".".join(n.split(".")[-3:]) for n, p in model.named_parameters() if len(shape_of(p)) == 3}
    return sorted(name for name in found if not name.endswith(("_blocks", "_scales")))


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The whole shape; under ZeRO-3 a parameter is a shard."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def linear_names(model: Any) -> list[str]:
    """The last parts of the names of all linear layers: what can be targeted."""
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ == "Linear"}
    return sorted(found)


def load_adapter(model: Any, folder: Path) -> PeftModel:
    """The adapter saved in `folder` on `model`, frozen.

    Raises UnsupportedModel for a folder without an adapter, KeyMismatch where keys or shapes differ.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or not (folder / CONFIG_FILE).is_file():
        raise UnsupportedModel(f"{folder}: no {WEIGHTS_FILE} with {CONFIG_FILE}; give the folder of an adapter")
    try:
        loaded = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise KeyMismatch(f"{weights}: does not fit {type(model).__name__} ({error})") from error
    with safe_open(weights, framework="pt") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    check_keys(str(weights), missing=wanted - saved, unexpected=saved - wanted)
    return loaded


def parameter_counts(model: Any) -> tuple[int, int]:
    """Trainable parameters, and all of them with two weights counted for a packed byte.

    Scales of packed experts are no parameters of the model and are left out.
    """
    trainable = total = 0
    for name, parameter in model.named_parameters():
        # Under ZeRO-3 a parameter is a shard; ds_numel is the whole.
        count = getattr(parameter, "ds_numel", parameter.numel())
        if name.endswith("_scales"):
            continue
        total += 2 * count if name.endswith("_blocks") else count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
