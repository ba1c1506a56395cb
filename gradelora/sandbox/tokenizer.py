"""A byte-level BPE tokenizer with the control tokens of harmony, trained on the sandbox's texts.

Shaped like gpt-oss's: the same pre-tokenizer (o200k), no normaliser, control tokens at the top
of the vocabulary.  The same texts give the same tokenizer, byte for byte.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from gradelora.config import EncodeConfig
from gradelora.prompt.harmony import system_text
from gradelora.prompt.layout import developer_text, spell_score, user_text
from gradelora.sandbox.answers import Question

VOCABULARY = 2500
START_OF_TEXT, END_OF_TEXT, RETURN, CALL = "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>"
CONTROLS = (
    START_OF_TEXT,
    END_OF_TEXT,
    RETURN,
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    CALL,
)
# The split of o200k, as tokenizer.json of gpt-oss spells it.
PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# The header stands in every row: its words shall be single tokens.
HEADER_WEIGHT = 50
CHAT_TEMPLATE = """\
{#- A small template of harmony's shape: system, developer, then the conversation. -#}
{%- set effort = reasoning_effort if reasoning_effort is defined else "medium" -%}
{{- "<|start|>system<|message|>You are a tiny model for trying things out.\\n" -}}
{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\nReasoning: " + effort + "<|end|>" -}}
{%- for message in messages -%}
    {%- if message.role in ("system", "developer") -%}
        {{- "<|start|>developer<|message|># Instructions\\n\\n" + message.content + "<|end|>" -}}
    {%- elif message.role == "assistant" -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content -}}
        {{- "<|return|>" if loop.last and not add_generation_prompt else "<|end|>" -}}
    {%- else -%}
        {{- "<|start|>" + message.role + "<|message|>" + message.content + "<|end|>" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|start|>assistant" -}}
{%- endif -%}
"""


def write_tokenizer(out: Path, questions: Iterable[Question], config: EncodeConfig) -> dict[str, int]:
    """Train on the texts of `questions` and write the tokenizer's files into `out`.

    Returns the ids of the control tokens, the last of VOCABULARY.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROLS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(questions, config), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY - len(CONTROLS):
        raise ValueError(
            f"{tokenizer.get_vocab_size()} tokens from too little text; {VOCABULARY - len(CONTROLS)} wanted"
        )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    tokenizer.save(str(out / "tokenizer.json"))
    ids = {name: VOCABULARY - len(CONTROLS) + number for number, name in enumerate(CONTROLS)}
    _write_settings(out, ids)
    return ids


def _texts(questions: Iterable[Question], config: EncodeConfig) -> Iterator[str]:
    """What the tokenizer shall know: the header, then every clause as it may stand in an answer."""
    header = system_text(config.conversation_date, config.reasoning_effort)
    for _ in range(HEADER_WEIGHT):
        yield f"system developer user assistant final {header}"
        yield "# Instructions\n\n" + developer_text(config.instructions, config.target)
    for question in questions:
        for _ in range(HEADER_WEIGHT // 5):
            yield user_text(question.question, question.rubric, question.max_score)
        for score in range(2 * question.max_score + 1):
            yield f'{{"score": {spell_score(score / 2)}}}'
        for point in question.points:
            for clause in (*point.met, *point.half, *point.missed):
                yield from _in_answers(clause)
        for clause in question.filler:
            yield from _in_answers(clause)


def _in_answers(clause: str) -> Iterator[str]:
    yield f"{clause} and {clause}"
    yield f" {clause[0].upper()}{clause[1:]}."


def _write_settings(out: Path, ids: dict[str, int]) -> None:
    special = {"bos_token": START_OF_TEXT, "eos_token": RETURN, "pad_token": END_OF_TEXT}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "added_tokens_decoder": {str(id): {"content": name, **flags} for name, id in ids.items()},
        **special,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
