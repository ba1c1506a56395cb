"""Tokenizers trained in a second, with the files that a Hub repository has."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HARMONY = ("<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The template of SmolLM2-Instruct, without its default system message.
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The split of gpt-oss's tokenizer.json (o200k).
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "# Question\n\nWhy does the water boil?\n\n# Rubric\n\nNames heat.\n\n# Maximum score\n\n3\n\n# Student answer\n\n",
    "The water boils because the heat makes the water hot, the steam goes up.",
    '{"score": 3} {"score": 12, "feedback": "Good"}',
    "system user assistant developer final analysis start message channel return end",
)


def write_tokenizer(
    folder: Path,
    controls: Sequence[str] = HARMONY,
    template: str | None = None,
    merges: int = 120,
    special: bool = True,
) -> Path:
    """Byte-level BPE split like gpt-oss's; control tokens at the top of the vocabulary.  Returns the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in controls])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "pad_token": controls[0],
        "eos_token": {"__type": "AddedToken", "content": controls[-1]},
        "bos_token": None,
    }
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
