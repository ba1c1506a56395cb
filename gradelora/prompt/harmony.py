"""The chat format of gpt-oss, as openai-harmony spells it.

The chat template of the Hub's repository adds an empty line after the developer's text and
today's date; openai-harmony, with which the model was released, does not.  The spelling is
recorded in the layout's description.  Source: https://github.com/openai/harmony (docs/format.md).
"""

from pathlib import Path

from gradelora.config import EncodeConfig
from gradelora.prompt.layout import Layout, developer_text
from gradelora.prompt.text import Text

CONTROLS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."


def layout(text: Text, tokenizer_folder: Path, config: EncodeConfig) -> Layout:  # noqa: ARG001
    """system, developer, user, then the assistant's final message.  Raises UnsupportedModel."""
    start, message, channel, end, stop = (text.control(name) for name in CONTROLS)

    def turn(role: str, content: str) -> list[int]:
        return [start, *text.encode(role), message, *text.encode(content), end]

    system = system_text(config.conversation_date, config.reasoning_effort)
    developer = "# Instructions\n\n" + developer_text(config.instructions, config.target)
    return Layout(
        name="harmony",
        text=text,
        opening=(
            *turn("system", system),
            *turn("developer", developer),
            start,
            *text.encode("user"),
            message,
        ),
        user_opening="",
        closing=[end, start, *text.encode("assistant")],
        target_opening=(channel, *text.encode("final"), message),
        target_closing=(stop,),
        target_form=config.target,
        pad_token_id=text.pad_token_id(stop),
        details={
            "spelling": "openai-harmony",
            "conversation_date": config.conversation_date,
            "reasoning_effort": config.reasoning_effort,
            "system": system,
            "developer": developer,
            "controls": {name: text.control(name) for name in CONTROLS},
        },
    )


def system_text(date: str, effort: str) -> str:
    """The system message of openai-harmony's SystemContent."""
    return (
        f"{IDENTITY}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}\nCurrent date: {date}\n\nReasoning: {effort}\n\n{CHANNELS}"
    )
