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

    @property
    def assumed(self) -> dict[str, int | None]:
        """What config.json leaves out of the layout's keys, with the values that are used."""
        layout, read = BLOCK_LAYOUTS[self.model_type], getattr(self, "_read", {})
        keys = {layout.key: self.block_size, "mask_token_id": self.mask_token_id}
        return {key: value for key, value in keys.items() if read.get(key) is None}

    def adopt(self, block: int) -> None:
        """Take another size of blocks where config.json has none; else nothing changes."""
        if BLOCK_LAYOUTS[self.model_type].key in self.assumed:
            self.block_size = block

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
    """The keys of ``Efficient-Large-Model/Fast_dLLM_v2_*``: Qwen2.5's, ``bd_size`` and the original's own.

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
