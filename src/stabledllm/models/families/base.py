"""The base class of the native families: the forward of a masked diffusion model.

Legend: N rows, L positions, D width, V vocabulary, S selected positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stabledllm.models.families.attention import attention_arguments
from stabledllm.models.families.prediction import predict
from stabledllm.models.families.rotary import rotary
from stabledllm.models.fixed_vocabulary import FixedVocabulary
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.output import MDMOutput


class MaskedDiffusionModel(FixedVocabulary, PreTrainedModel):
    """A model that predicts every token of a row from the whole, partly masked row.

    A padded row gives what it gives alone, and a packed row what its segments give alone. The parameters carry the
    hub's names, so that checkpoints, adapters and optimizer states need no translation.

    A family defines ``layers``, ``final_norm`` and the input and output embeddings; its configuration has
    ``head_dim``, ``rope_theta`` and ``shift_logits``.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False
    _keep_rotary_in_float32 = False

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final normalised hidden states, shape (N, L, D)."""
        length, back_end = input_ids.shape[1], self.config._attn_implementation
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        within = self.attended(position_ids)
        if cache is not None:
            input_ids, position_ids = cache.enter(input_ids, position_ids, segment_ids, back_end)
        dtype = self.get_input_embeddings().weight.dtype
        arguments = attention_arguments(back_end, attention_mask, segment_ids, dtype, within=within)
        hidden_NLD = self.through_layers(input_ids, position_ids, arguments, cache)
        return hidden_NLD if cache is None else cache.spread(hidden_NLD, length)

    def through_layers(
        self, input_ids: Tensor, position_ids: Tensor, arguments: dict, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Final normalised hidden states of the tokens, under the layers' attention ``arguments``.

        With a ``cache`` the tokens are those that it computes, and the attention mask is that of all.
        """
        x_NLD = self.get_input_embeddings()(input_ids)
        cos, sin = self.rotations(position_ids)
        if not self._keep_rotary_in_float32:
            cos, sin = cos.to(x_NLD.dtype), sin.to(x_NLD.dtype)
        if cache is not None:
            arguments = arguments | {"attention_mask": cache.queries(arguments["attention_mask"])}
            arguments["past_key_values"] = cache
        for layer in self.layers():
            x_NLD = layer(x_NLD, position_embeddings=(cos, sin), **arguments)
        return self.final_norm()(x_NLD)

    def rotations(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding at each position, float32, shape (N, L, head_dim)."""
        return rotary(position_ids, self.config.head_dim, self.config.rope_theta)

    def attended(self, position_ids: Tensor) -> Tensor | None:
        """The pairs of positions, (N, L, L), of which the query may see the key; None, as here, for all."""
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        selected: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        nll_weights: Tensor | None = None,
        cache: KeyValueCache | None = None,
        **_: object,
    ) -> MDMOutput:
        """The outputs of the model, in row-major order.

        With ``selected`` and ``targets`` they are ``nll`` (S,), the cross-entropies at the selected positions in nats;
        with ``selected`` alone ``logits`` (S, V) there, both float32 or wider; with neither all ``logits`` (N, L, V).

        Args:
            attention_mask: False at padding, (N, L).
            segment_ids, position_ids: packed rows, (N, L); positions restart in each segment.
            nll_weights: (S,), see :func:`~stabledllm.models.families.prediction.predict`.
            cache: only its positions are computed.
        """
        hidden_NLD = self.hidden_states(input_ids, attention_mask, segment_ids, position_ids, cache)
        return predict(
            hidden_NLD,
            self.get_output_embeddings(),
            selected,
            targets,
            shift=self.config.shift_logits,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            nll_weights=nll_weights,
        )
