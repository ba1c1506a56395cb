"""The adapter as it leaves training: the same bytes for the same run, wherever it ran."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from gradelora.model.adapter import CONFIG_FILE, WEIGHTS_FILE
from gradelora.store import fsync
from gradelora.train.job import HISTORY


def adapter_weights(model: PeftModel, zero3: bool) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, by name.  Under ZeRO-3 every rank must call."""
    if not zero3:
        return _state(model)
    import deepspeed

    # Only what was trained: gathering the base would need all of its memory.
    trained = [p for p in model.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(trained):
        return _state(model)


def _state(model: PeftModel) -> dict[str, torch.Tensor]:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in sorted(state)}


def save_adapter(
    folder: Path, weights: dict[str, torch.Tensor], peft_config: Any, *, repo_id: str, commit: str
) -> None:
    """Write weights and config; sets become sorted lists and no path of this machine stays."""
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {name: _plain(value) for name, value in peft_config.to_dict().items()}
    config |= {"base_model_name_or_path": repo_id, "revision": commit, "inference_mode": True}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fsync(folder / WEIGHTS_FILE)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return getattr(value, "value", value)


# As the Trainer calls them, and as history.json does.
NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "eval_loss": "validation_loss",
    "eval_qwk": "validation_qwk",
    "converted": "converted",
}
Entry = dict[str, float | str]


def history_of(log: list[dict[str, Any]], notes: Mapping[int, Mapping[str, str]]) -> list[Entry]:
    """The Trainer's log by step: the figures of NAMES, and what `notes` say of a step; no times."""
    steps: dict[int, Entry] = {}
    for entry in log:
        found = {new: entry[old] for old, new in NAMES.items() if old in entry}
        if found:
            steps.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    for step, said in notes.items():
        steps[step].update(said)
    return [steps[step] for step in sorted(steps)]


def save_history(folder: Path, history: list[Entry]) -> None:
    """One JSON list, an entry a line."""
    lines = ",\n".join(json.dumps(entry) for entry in history)
    (folder / HISTORY).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
