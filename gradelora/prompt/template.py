"""A layout from a model's own chat template, by rendering marks and splitting at them.

The template is rendered with marks in place of instructions, prefix, answer and target; what
stands between the marks is the format's constant text.  Where a mark is altered, moved or
doubled the template cannot be split and is refused.  Control ids come from the template's own
text alone: what users write never passes through it.
"""

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gradelora.config import EncodeConfig
from gradelora.errors import UnsupportedModel
from gradelora.prompt.layout import Layout, developer_text
from gradelora.prompt.text import Text, token_content

# Two sets of different length and letters: a template whose constant text depends on what
# it is given answers them differently.
MARKS = (
    ("instructionsQ7x", "prefixQ7x", "answerQ7x", "targetQ7x"),
    ("Zk9 instructions mark, longer", "Zk9 prefix mark", "Zk9 answer mark, the longest of all", "Zk9 target"),
)
REMEDY = "choose another base model, or set encode.layout=harmony for gpt-oss"


@dataclass(frozen=True)
class Pieces:
    """The constant text of a format; `before_instructions` is None where it has no system message."""

    before_instructions: str | None
    before_prefix: str
    closing: str
    target_opening: str
    after_target: str


def layout(text: Text, tokenizer_folder: Path, config: EncodeConfig) -> Layout:
    """The model's own format.  Raises UnsupportedModel where it cannot be split cleanly."""
    source = _source(text, tokenizer_folder)
    pieces, other = (_split(source, text, config, marks) for marks in MARKS)
    if pieces != other:
        _refuse(text, "its constant text depends on what the messages say")
    developer = developer_text(config.instructions, config.target)
    opening = text.encode_template(pieces.before_prefix)
    if pieces.before_instructions is not None:
        opening = [*text.encode_template(pieces.before_instructions), *text.encode(developer), *opening]
    end = _up_to_control(text, pieces.after_target)
    return Layout(
        name="chat_template",
        text=text,
        opening=tuple(opening),
        user_opening="" if pieces.before_instructions is not None else f"{developer}\n\n",
        closing=text.encode_template(pieces.closing),
        target_opening=tuple(text.encode_template(pieces.target_opening)),
        target_closing=end,
        target_form=config.target,
        pad_token_id=text.pad_token_id(end[-1]),
        details={
            "spelling": "the model's chat template",
            "conversation_date": config.conversation_date,
            "reasoning_effort": config.reasoning_effort,
            "developer": developer,
            "template": source,
            "controls": text.controls,
        },
    )


def _split(source: str, text: Text, config: EncodeConfig, marks: tuple[str, str, str, str]) -> Pieces:
    """The format's pieces, with the system message if the template takes one."""
    from jinja2 import TemplateError

    instructions, prefix, answer, target = marks
    system = {"role": "system", "content": instructions}
    user = {"role": "user", "content": prefix + answer}
    assistant = {"role": "assistant", "content": target}
    try:
        # Some templates show the system message only while the user's turn is the last.
        instructed = instructions in _render(source, text, config, [system, user], generation=True)
        instructed &= instructions in _render(source, text, config, [system, user, assistant], generation=False)
    except TemplateError:
        instructed = False
    head = [system, user] if instructed else [user]
    inner = marks if instructed else marks[1:]
    try:
        prompt = _cut(text, _render(source, text, config, head, generation=True), inner[:-1])
        whole = _cut(text, _render(source, text, config, [*head, assistant], generation=False), inner)
    except TemplateError as error:
        _refuse(text, f"it raises {error}", error)
    *before, joint, closing = prompt
    if joint:
        _refuse(text, "it changes the user's message")
    if whole[: len(before)] != before or not whole[-2].startswith(closing):
        _refuse(text, "a prompt is not the beginning of the conversation that answers it")
    return Pieces(before[0] if instructed else None, before[-1], closing, whole[-2][len(closing) :], whole[-1])


def _cut(text: Text, rendered: str, marks: tuple[str, ...]) -> list[str]:
    """The text around the marks; each must stand there once, in order."""
    places = [rendered.find(mark) for mark in marks]
    for mark, place in zip(marks, places, strict=True):
        if place < 0:
            _refuse(text, f"it alters or drops a message ({mark!r} is not in what it renders)")
        if rendered.count(mark) != 1:
            _refuse(text, f"it repeats a message ({mark!r} stands in it {rendered.count(mark)} times)")
    if places != sorted(places):
        _refuse(text, "it puts the messages into another order")
    pieces, at = [], 0
    for mark, place in zip(marks, places, strict=True):
        pieces.append(rendered[at:place])
        at = place + len(mark)
    return [*pieces, rendered[at:]]


def _render(source: str, text: Text, config: EncodeConfig, messages: list[dict[str, str]], *, generation: bool) -> str:
    """What the template makes of messages, sandboxed and on the pinned date.

    The environment is that of transformers (utils/chat_template_utils.py), without importing it.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    date = datetime.datetime.fromisoformat(config.conversation_date)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = date.strftime
    tokens = {name: token_content(value) for name, value in text.settings.items() if name.endswith("_token")}
    variables: dict[str, Any] = {name: token for name, token in tokens.items() if token}
    # What the templates of reasoning models look at.
    variables |= {"enable_thinking": False, "reasoning_effort": config.reasoning_effort}
    try:
        return environment.from_string(_without_generation_blocks(source)).render(
            messages=messages, add_generation_prompt=generation, tools=None, documents=None, **variables
        )
    except TemplateError:
        raise
    except Exception as error:  # A template is somebody's program: it may fail in any way.
        raise TemplateError(f"{type(error).__name__}: {error}") from error


def _without_generation_blocks(source: str) -> str:
    """`{% generation %}` only marks what the assistant said, for masks; it renders nothing."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", _same_trimming, source)


def _same_trimming(match: Any) -> str:
    """A tag without effect that trims white space as the matched one does."""
    tag: str = match.group()
    return "{%" + "-" * tag.startswith("{%-") + " set _ = 0 " + "-" * tag.endswith("-%}") + "%}"


def _source(text: Text, folder: Path) -> str:
    """The template's text: a file beside the tokenizer, or in tokenizer_config.json.  Raises UnsupportedModel."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stored = text.settings.get("chat_template")
    if isinstance(stored, list):
        stored = {entry["name"]: entry["template"] for entry in stored}.get("default")
    if not isinstance(stored, str):
        raise UnsupportedModel(
            f"{folder}: the model has no chat template; choose the instruction-tuned variant of the base model"
        )
    return stored


def _up_to_control(text: Text, after: str) -> tuple[int, ...]:
    """Ids after the target up to the first control token, which ends the model's turn."""
    ids = text.encode_template(after)
    controls = frozenset(text.controls.values())
    for index, token in enumerate(ids):
        if token in controls:
            return tuple(ids[: index + 1])
    return _refuse(text, "no control token ends what the assistant says")


def _refuse(text: Text, why: str, error: Exception | None = None) -> NoReturn:
    raise UnsupportedModel(
        f"{text.where.parent}: the chat template cannot be split cleanly: {why}; {REMEDY}"
    ) from error
