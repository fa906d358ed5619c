"""Loading of models that are trained in blocks, whose files may leave out the mask token."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from stabledllm.errors import UserError
from stabledllm.models.block_layouts import BLOCK_LAYOUTS, LLADA2
from stabledllm.models.families.a2d_loading import mask_token_in
from stabledllm.models.families.block_config import BlockConfig
from stabledllm.models.families.block_model import BLOCK_MODELS, BlockForward
from stabledllm.models.families.llada2 import LLaDA2MoeModelLM
from stabledllm.models.families.llada2_config import LLaDA2MoeConfig
from stabledllm.models.families.native import load_native
from stabledllm.models.families.source import Source

IN_BLOCKS: dict[str, type[BlockForward]] = BLOCK_MODELS | {LLADA2: LLaDA2MoeModelLM}
"""The models of all layouts by the ``model_type`` of their config.json."""


def load_blocks(source: Source) -> BlockForward:
    """Load a model that is trained in blocks, or make a new one of its shape.

    Raises:
        UserError: a value of the config that is impossible or not implemented, weights that are not those of the
            config, or an attention back end that takes no mask of blocks.
    """
    if source.attention.startswith("flash"):
        raise UserError(
            f"{source.what}: expected attention 'sdpa', 'eager' or 'flex_attention' for a model in blocks, found "
            f"'{source.attention}'."
        )
    model = load_native(IN_BLOCKS[source.model_type], source)
    fill_mask_id(model.config, source.folder)
    return model


def assumed_in_words(config: PretrainedConfig) -> str:
    """What config.json leaves out of the keys of a layout in blocks, and what stands for it; empty for other models."""
    assumed = getattr(config, "assumed", {})
    if not assumed:
        return ""
    keys = " and ".join(f"{key} ({value})" for key, value in assumed.items())
    return f"config.json leaves out {keys}: the values in brackets are used"


def fill_mask_id(config: BlockConfig | LLaDA2MoeConfig, folder: Path) -> None:
    """Set the mask token's id where config.json lacks it: the tokenizer's, else the layout's in a vocabulary so large.

    It stays None in a smaller vocabulary, which is not the published one.
    """
    layout = BLOCK_LAYOUTS[config.model_type]
    if config.mask_token_id is None:
        config.mask_token_id = mask_token_in(folder, layout.masks)
    if config.mask_token_id is None and layout.mask_id < config.vocab_size:
        config.mask_token_id = layout.mask_id
