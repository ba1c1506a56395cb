"""How to use what came out: commands that can be copied."""

from dataclasses import dataclass

from gradelora.report.given import ReportInput

# What vLLM's --max-lora-rank accepts (vllm/config/lora.py).
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Snippet:
    """A heading and what to type under it."""

    title: str
    language: str
    text: str


def commands(given: ReportInput) -> list[Snippet]:
    """Scoring with this program, loading in Python, serving with vLLM."""
    adapter, base, commit = given.adapter.path, given.snapshot.repo_id, given.snapshot.commit
    snippets = [
        Snippet(
            "Score new answers in the same format",
            "bash",
            f"gradelora score --config deployments/{given.run.name}.yaml --out scores answers.json",
        ),
        Snippet(
            "Load in Python",
            "python",
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}", revision="{commit}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{adapter}")',
        ),
        Snippet(
            "Serve with vLLM, the adapter beside the base",
            "bash",
            f"vllm serve {base} --revision {commit} \\\n"
            f"  --enable-lora --max-lora-rank {_vllm_rank(given.run.train.lora.r)} \\\n"
            f"  --lora-modules {given.run.name}={adapter}",
        ),
    ]
    if given.merged:
        snippets.append(Snippet("Serve the merged model with vLLM", "bash", f"vllm serve {given.merged.path}"))
    return snippets


def _vllm_rank(r: int) -> int:
    """The smallest accepted rank that holds `r`; the largest where none does."""
    return next((rank for rank in VLLM_RANKS if rank >= r), VLLM_RANKS[-1])
