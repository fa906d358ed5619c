"""The published layouts of models that are trained in blocks, and what their config.json may leave out.

Loads no framework: block sizes and names are needed before any model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BlockLayout:
    """A layout's key and defaults.

    In all of them blocks are counted from the row's first token, so that a block may hold the end of the prompt and the
    start of the response.
    """

    key: str
    """The key of config.json with the tokens of a block."""
    size: int
    """The tokens of a block where config.json does not say it."""
    mask_id: int
    """The mask token's id in the published vocabulary, where neither config.json nor the tokenizer says it."""
    masks: tuple[str, ...]
    """How the mask token is spelt in published tokenizers that do not call it their mask token."""


SDAR, FAST_DLLM = "sdar", "Fast_dLLM_Qwen"
BLOCK_LAYOUTS = {
    SDAR: BlockLayout("block_size", 4, 151669, ("<|MASK|>", "<MASK>")),
    FAST_DLLM: BlockLayout("bd_size", 32, 151665, ("|<MASK>|",)),
}
"""The layouts by the ``model_type`` of their config.json."""


def block_size_in(config: Mapping[str, Any]) -> int | None:
    """The block size that the model of a config.json was trained with; None for a model that was trained in none.

    >>> block_size_in({"model_type": "sdar"}), block_size_in({"model_type": "Fast_dLLM_Qwen", "bd_size": 8})
    (4, 8)
    """
    layout = BLOCK_LAYOUTS.get(str(config.get("model_type")))
    size = config.get(layout.key if layout else "block_size")
    if size is None and layout:
        return layout.size
    return size if type(size) is int and size > 0 else None
