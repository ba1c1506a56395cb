"""How an item is worded and becomes token ids: shared by encoding, evaluation and scoring."""

from pathlib import Path

from gradelora.config import EncodeConfig
from gradelora.prompt.layout import Layout, spell_score

__all__ = ["Layout", "load_layout", "spell_score"]


def load_layout(tokenizer_folder: Path, config: EncodeConfig) -> Layout:
    """The configured layout over the tokenizer in that folder.

    Raises UnsupportedModel where the tokenizer or its chat template cannot carry the layout.
    """
    from gradelora.prompt import harmony, template
    from gradelora.prompt.text import Text

    build = {"harmony": harmony.layout, "chat_template": template.layout}[config.layout]
    return build(Text.load(tokenizer_folder), tokenizer_folder, config)
