"""Free text to ids, as ordinary text whatever it says.

A student may type `<|start|>`: it must become the ids of those nine characters and never the
control token of that name.  So every added token of the tokenizer counts as special and the
tokenizer is told to encode special tokens as text; control ids are looked up by name alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gradelora.errors import UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Text:
    """A fast tokenizer that reads text as text; `controls` are its added tokens by name."""

    def __init__(self, tokenizer: "Tokenizer", settings: dict[str, Any], where: Path) -> None:
        self.where = where
        self.settings = settings
        self.controls = {token.content: id for id, token in sorted(tokenizer.get_added_tokens_decoder().items())}
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._refuse_forgeable()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read tokenizer.json and tokenizer_config.json.  Raises UnsupportedModel without the former."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModel(f"{path}: not there; the base model must have a fast tokenizer (tokenizer.json)")
        tokenizer = Tokenizer.from_file(str(path))
        if not all(token.special for token in tokenizer.get_added_tokens_decoder().values()):
            # Only special tokens can be told to be text (`<think>` of some models is not special).
            content = json.loads(path.read_text(encoding="utf-8"))
            content["added_tokens"] = [{**token, "special": True} for token in content["added_tokens"]]
            tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, _settings(folder), path)

    def control(self, name: str) -> int:
        """The id of the control token of that name.  Raises UnsupportedModel where there is none."""
        if name not in self.controls:
            raise UnsupportedModel(
                f"{self.where}: has no control token {name}; set encode.layout=chat_template, "
                "which follows the model's own template"
            )
        return self.controls[name]

    def encode(self, text: str) -> list[int]:
        """Ids of text as ordinary text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without offsets: the fast way."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and for each the characters [start, end) that it stands for; a part of a character has the whole's."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_template(self, text: str) -> list[int]:
        """Ids of a template's own text, control tokens included: never for text that a user wrote."""
        self._tokenizer.encode_special_tokens = False
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens by name."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def pad_token_id(self, end: int) -> int:
        """The tokenizer's pad token, or its eos token; `end` closes the target and is the last choice."""
        named = [
            self.controls.get(token_content(self.settings.get(key))) for key in ("pad_token", "unk_token", "eos_token")
        ]
        others = [id for id in named if id is not None and id != end]
        return others[0] if others else end

    def _refuse_forgeable(self) -> None:
        """Prove on every control token's own name that text does not yield control ids."""
        controls = frozenset(self.controls.values())
        for name in self.controls:
            if not controls.isdisjoint(self.encode(name)):
                raise UnsupportedModel(
                    f"{self.where}: the text {name!r} yields a control token even as ordinary text, so a student "
                    "could forge the prompt; use a base model with a byte-level BPE tokenizer"
                )


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; {} where both are absent."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= json.loads((folder / name).read_text(encoding="utf-8"))
    return settings


def token_content(token: Any) -> str:
    """A special token's text: older files store a dict, newer ones the string; "" for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
