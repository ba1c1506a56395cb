"""A merged model scored with transformers alone: `python scored_alone.py MODEL ENCODED_DATA SPLIT`.

A process of its own, offline, without anything of gradelora: what is printed is what any user of
the folder would see.  Each candidate is a whole sequence, so nothing is shared and nothing packed.
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, data: str, split: str) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    AutoTokenizer.from_pretrained(folder)
    candidates = json.loads((Path(data) / "candidates.json").read_text())
    found = {}
    with torch.no_grad():
        model = model.float().eval()
        for row in datasets.load_from_disk(str(Path(data) / split)):
            prompt, targets = row["input_ids"][: row["prompt_length"]], candidates[row["question_key"]]["targets"]
            found[row["item_id"]] = [log_probability(model, prompt, target) for target in targets]
    answer = {"missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"])}
    print(json.dumps(answer | {"log_probabilities": found}))


def log_probability(model: torch.nn.Module, prompt: list[int], target: list[int]) -> float:
    logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
