"""Configurations of models that are trained in blocks, in the hub's keys: SDAR (and TraDo), Fast-dLLM v2."""

from __future__ import annotations

from typing import Any

from stabledllm.models.block_layouts import BLOCK_LAYOUTS, FAST_DLLM, SDAR
from stabledllm.models.families.decoder_config import DecoderConfig


class BlockConfig(DecoderConfig):
    """What the layouts share; where a file lacks the size of a block, it is the published one of the layout.

    Args:
        block_size: tokens of a block. Training may change it, and what is saved then says so.
    """

    model_type = "blocks"
    shift_logits = False
    blocks_from_start = True
    """Blocks are counted from the row's first token, not from the response's."""

    def __init__(self, block_size: int | None = None, **kwargs):
        super().__init__(**kwargs)
        layout = BLOCK_LAYOUTS.get(self.model_type)
        self.block_size = block_size or (layout.size if layout else None)

    def _changed(self, read: dict[str, Any]) -> dict[str, Any]:
        layout = BLOCK_LAYOUTS[self.model_type]
        given = layout.key in read or self.block_size != layout.size
        return {layout.key: self.block_size} if given else {}


class SDARConfig(BlockConfig):
    """The keys of ``JetLM/SDAR-*`` and ``Gen-Verse/TraDo-*``: Qwen3's."""

    model_type = SDAR
    _head_dim = 128

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class FastDLLMConfig(BlockConfig):
    """The keys of ``Efficient-Large-Model/Fast_dLLM_v2_*``: Qwen2.5's, ``bd_size`` and training choices of the original.

    Args:
        bd_size: tokens of a block, this layout's name of ``block_size``.
    """

    model_type = FAST_DLLM
    shift_logits = True
    block_start = "noisy"
    """What predicts a block's first token in training, see :class:`~stabledllm.models.families.block_model.BlockModel`;
    no part of the file."""
    attribute_map = {"block_size": "bd_size"}

    def __init__(self, bd_size: int | None = None, **kwargs):
        super().__init__(**kwargs | {"block_size": bd_size})
