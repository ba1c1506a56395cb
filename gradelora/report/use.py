"""How to use what came out: commands that can be copied."""

from dataclasses import dataclass
from typing import Literal

from gradelora.report.given import ReportInput

# What vLLM's --max-lora-rank accepts (vllm/config/lora.py).
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Snippet:
    """A heading and what to type under it."""

    title: str
    language: str
    text: str


@dataclass(frozen=True)
class Handover:
    """What is handed over: adapter or merged model, as a Hub repository `owner/name` or a folder.

    `config` is the file whose settings it was made with.
    """

    kind: Literal["adapter", "merged"]
    where: str
    config: str


def commands(given: ReportInput, handover: Handover | None = None) -> list[Snippet]:
    """Scoring with this program, loading in Python, serving with vLLM, GGUF; of the store's own where none is given."""
    if handover is None:
        file = f"deployments/{given.run.name}.yaml"
        snippets = [_score(given, file, None), *_adapter(given, str(given.adapter.path))]
        merged = _merged(given, str(given.merged.path)) if given.merged else []
        return [*snippets, *merged, *_request(given, str(given.snapshot.path), merged=bool(merged))]
    merging = handover.kind == "merged"
    snippets = (_merged if merging else _adapter)(given, handover.where)
    score = _score(given, handover.config, None if merging else handover.where)
    return [*snippets, *_request(given, handover.where, merged=merging), score]


def _score(given: ReportInput, config: str, adapter: str | None) -> Snippet:
    """By likelihood, with the champion's adapter or one that was handed over."""
    named = f" --adapter {_folder(given, adapter)}" if adapter else ""
    text = f"gradelora score --config {config}{named} --out scores answers.json"
    return Snippet("Score new answers in the same format", "bash", (_local(given, adapter) if adapter else "") + text)


def _request(given: ReportInput, where: str, *, merged: bool) -> list[Snippet]:
    """A prompt as in training, by its ids: text could spell control tokens.  None where nothing can be served."""
    if not merged and _vllm_rank(given.run.train.lora.r) is None:
        return []
    if where.startswith("/"):
        folder = f'Path("{where}")'
    else:
        folder = f'Path(snapshot_download("{where}", allow_patterns=["*.json", "*.jinja"]))'
    imported = "" if where.startswith("/") else "from huggingface_hub import snapshot_download\n\n"
    text = (
        f"import json\nfrom http.client import HTTPConnection\nfrom pathlib import Path\n\n{imported}"
        "from gradelora.config import EncodeConfig\nfrom gradelora.prompt import load_layout\n\n"
        f"encode = {given.run.encode.model_dump()!r}\n"
        f"layout = load_layout({folder}, EncodeConfig.model_validate(encode))\n"
        'question, rubric, maximum, answer = "the question", "the rubric", 3, "the student\'s answer"\n'
        "prompt = [*layout.prefix(question, rubric, maximum), *layout.answer(answer), *layout.closing]\n"
        f'asked = {{"model": "{given.run.name}", "prompt": [*prompt, *layout.target_opening], "temperature": 0,\n'
        '         "max_tokens": 64, "stop_token_ids": [layout.target_closing[-1]]}\n'
        'served = HTTPConnection("localhost", 8000)\n'
        'served.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})\n'
        'print(json.load(served.getresponse())["choices"][0]["text"])'
    )
    return [Snippet("Ask the served model, decoded greedily; `gradelora score` weighs every score", "python", text)]


def _adapter(given: ReportInput, adapter: str) -> list[Snippet]:
    base, commit, lora = given.snapshot.repo_id, given.snapshot.commit, given.run.train.lora
    experts = bool(lora.target_parameters)
    # PEFT adds to an expert's weight itself, which a packed model has not.
    loaded = ", quantization_config=Mxfp4Config(dequantize=True)" if experts and _is_mxfp4(given) else ""
    python = (
        "from peft import PeftModel\n"
        f"from transformers import AutoModelForCausalLM{', Mxfp4Config' if loaded else ''}\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}", revision="{commit}", dtype="auto"{loaded})\n'
        f'model = PeftModel.from_pretrained(base, "{adapter}")'
    )
    snippets = [Snippet("Load in Python", "python", python)]
    rank = _vllm_rank(lora.r)
    if rank is not None:
        snippets.append(_vllm(given, adapter, rank, experts))
    if not experts:
        folder, name = _folder(given, adapter), given.run.name
        text = f"{_local(given, adapter)}python llama.cpp/convert_lora_to_gguf.py --base-model-id {base} \\\n"
        text += f"  {folder} --outfile {name}-lora.gguf"
        snippets.append(Snippet("Convert the adapter to GGUF, where llama.cpp knows the architecture", "bash", text))
    return snippets


def _vllm(given: ReportInput, adapter: str, rank: int, experts: bool) -> Snippet:
    note = "# needs a vLLM that serves LoRA on fused experts; any serves the merged model\n" if experts else ""
    return Snippet(
        "Serve with vLLM, the adapter beside the base",
        "bash",
        f"{note}vllm serve {given.snapshot.repo_id} --revision {given.snapshot.commit} \\\n"
        f"  --enable-lora --max-lora-rank {rank} \\\n"
        f"  --lora-modules {given.run.name}={adapter}",
    )


def _is_mxfp4(given: ReportInput) -> bool:
    config = given.snapshot.path / "config.json"
    return config.is_file() and '"mxfp4"' in config.read_text(encoding="utf-8")


def _merged(given: ReportInput, merged: str) -> list[Snippet]:
    return [
        Snippet(
            "Load the merged model in Python",
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{merged}", dtype="auto")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{merged}")',
        ),
        Snippet(
            "Serve the merged model with vLLM", "bash", f"vllm serve {merged} --served-model-name {given.run.name}"
        ),
        Snippet(
            "Convert the merged model to GGUF, where llama.cpp knows the architecture",
            "bash",
            f"{_local(given, merged)}"
            f"python llama.cpp/convert_hf_to_gguf.py {_folder(given, merged)} --outfile {given.run.name}.gguf",
        ),
    ]


def _folder(given: ReportInput, where: str) -> str:
    return where if where.startswith("/") else given.run.name


def _local(given: ReportInput, where: str) -> str:
    """The line that brings a repository here; none for a folder."""
    return "" if where.startswith("/") else f"hf download {where} --local-dir {given.run.name}\n"


def _vllm_rank(r: int) -> int | None:
    """The smallest accepted rank that holds `r`; None where vLLM takes no such adapter."""
    return next((rank for rank in VLLM_RANKS if rank >= r), None)
