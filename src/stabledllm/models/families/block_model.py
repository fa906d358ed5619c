"""Models that are trained in blocks: bidirectional attention within a block, none to later blocks.

SDAR and TraDo have Qwen3's layers, Fast-dLLM v2 has Qwen2.5's and shifted logits; LLaDA2 has a module of its own.

Legend: N rows, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from stabledllm.models.attention_masks import as_numbers, block_causal_mask
from stabledllm.models.families.attention import FLEX, as_mask
from stabledllm.models.families.base import MaskedDiffusionModel
from stabledllm.models.families.block_config import FastDLLMConfig, SDARConfig
from stabledllm.models.families.decoder import DecoderModel
from stabledllm.models.families.prediction import predict, predictors
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.output import MDMOutput


class BlockForward(MaskedDiffusionModel):
    """A model of blocks, which are counted from the row's first token.

    Without ``block_ids`` a token attends to its own block of ``config.block_size`` tokens and to those before it.
    ``block_ids`` (N, L), -1 at padding, say the blocks instead; with ``targets`` beside them every block of the noisy
    row sees the clean blocks before it (``targets`` is the clean row; the forward is over both copies, at the same
    positions, without the noisy blocks that carry no loss). ``packed`` lays the copies of several rows end to end in
    one sequence, without padding; each row sees its own alone, and results are in the rows' order.

    Under shifted logits a block's first token is predicted in training by the last position of the noisy block before
    it, as published, or with ``config.block_start = "clean"`` by that of the clean one, as in decoding and, whatever it
    is, in evaluation mode, unless ``starts_as_trained``.
    """

    _supports_flex_attn = True
    starts_as_trained = False
    """Whether a block's first token is predicted as in training, in evaluation mode too: for a probe of its losses."""

    def attended(self, position_ids: Tensor) -> Tensor:
        block = position_ids // self.config.block_size
        return block[:, :, None] >= block[:, None, :]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        selected: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        block_ids: Tensor | None = None,
        packed: bool = False,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        nll_weights: Tensor | None = None,
        cache: KeyValueCache | None = None,
        **_: object,
    ) -> MDMOutput:
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask)
        if self.config._attn_implementation == FLEX:
            position_ids = position_ids.expand_as(input_ids)  # it wants a mask for each row
        if block_ids is None:
            return super().forward(
                input_ids, attention_mask, selected, targets, segment_ids=segment_ids, position_ids=position_ids,
                nll_weights=nll_weights, cache=cache,
            )  # fmt: skip
        if targets is not None:
            copies = self._two_copies(input_ids, targets, position_ids, block_ids, selected, packed)
            return predict(copies, self.get_output_embeddings(), selected, targets, nll_weights=nll_weights)
        return predict(
            self._one_copy(input_ids, position_ids, block_ids, cache),
            self.get_output_embeddings(),
            selected,
            None,
            shift=self.config.shift_logits,
            attention_mask=block_ids >= 0,
        )

    def _one_copy(self, input_ids: Tensor, position_ids: Tensor, block_ids: Tensor, cache: KeyValueCache | None):
        """Hidden states (N, L, D) of rows whose tokens see their own block and those before it."""
        mask = self._dense(block_causal_mask(block_ids))
        if cache is None:
            return self.through_layers(input_ids, position_ids, mask)
        length = input_ids.shape[1]
        ids, places = cache.enter(input_ids, position_ids, None, self.config._attn_implementation)
        return cache.spread(self.through_layers(ids, places, mask, cache), length)

    def _two_copies(
        self,
        noisy_ids: Tensor,
        clean_ids: Tensor,
        position_ids: Tensor,
        block_ids: Tensor,
        selected: Tensor | None,
        packed: bool,
    ) -> Tensor:
        """For each position of the noisy row the hidden state that predicts it, (N, L, D)."""
        masked = noisy_ids != clean_ids
        copies = TwoCopies.of(masked if selected is None else masked | selected.bool(), block_ids, packed=packed)
        position_ids = position_ids.expand_as(block_ids)
        ids, places = copies.joined(noisy_ids, clean_ids), copies.joined(position_ids, position_ids)
        hidden = self.through_layers(ids, places, self._mask(copies)).flatten(0, 1)
        index = self._predicting(copies, block_ids)
        return hidden.index_select(0, index.flatten()).view(*index.shape, -1)

    def _predicting(self, copies: TwoCopies, block_ids: Tensor) -> Tensor:
        """The place among the sequences' of what predicts each position of the noisy row, (N, L)."""
        if not self.config.shift_logits:
            return copies.place
        before = predictors(block_ids, None, block_ids >= 0)
        place = copies.place.gather(1, before)
        if self.config.block_start == "clean" or not (self.training or self.starts_as_trained):
            first = block_ids != block_ids.gather(1, before)
            place = torch.where(first, copies.clean.gather(1, before), place)
        return place

    def _mask(self, copies: TwoCopies) -> dict[str, object]:
        """The layers' attention argument."""
        if self.config._attn_implementation == FLEX:
            return {"attention_mask": copies.block_mask()}
        return self._dense(copies.mask())

    def _dense(self, allowed: Tensor) -> dict[str, Tensor]:
        """The layers' attention argument for pairs of query and key, bool."""
        dtype, back_end = self.get_input_embeddings().weight.dtype, self.config._attn_implementation
        if back_end == "sdpa":
            return {"attention_mask": as_numbers(allowed, dtype)}
        return {"attention_mask": as_mask(back_end, allowed, dtype)}


class BlockModel(BlockForward, DecoderModel):
    """A model of blocks with the layers of Qwen2 or Qwen3."""


class SDARForCausalLM(BlockModel):
    """SDAR and TraDo: Qwen3 in blocks; the name is the original's, though no token is predicted from those before."""

    config_class = SDARConfig
    _no_split_modules = ["Qwen3DecoderLayer"]
    _layer, _norm, _rotary = Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding


class Fast_dLLM_QwenForCausalLM(BlockModel):
    """Fast-dLLM v2: Qwen2.5 in blocks, whose logits are shifted; the name is the original's."""

    config_class = FastDLLMConfig
    _no_split_modules = ["Qwen2DecoderLayer"]
    _layer, _norm, _rotary = Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding


BLOCK_MODELS: dict[str, type[BlockModel]] = {
    kind.config_class.model_type: kind for kind in (SDARForCausalLM, Fast_dLLM_QwenForCausalLM)
}
"""The models by the ``model_type`` of their config.json."""


def _positions(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The place of each token in its row, whatever the side of the padding, (1 or N, L)."""
    if attention_mask is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
