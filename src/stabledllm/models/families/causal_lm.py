"""The autoregressive baseline: any causal LM of transformers behind the common forward.

Legend: N rows, L positions, S selected positions, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stabledllm.errors import UserError
from stabledllm.models.alignment import padding_last
from stabledllm.models.evaluating import evaluating
from stabledllm.models.families.attention import attention_arguments
from stabledllm.models.families.prediction import predict, predictors
from stabledllm.models.families.source import Source
from stabledllm.models.families.transformers_own import load_transformers
from stabledllm.models.loss_head import OutputLayer, widened
from stabledllm.models.output import MDMOutput


def is_causal_lm(source: Source) -> bool:
    """Whether the architecture is one of transformers' own causal language models.

    A model with code of its own does not count: diffusion models (LLaDA, SDAR) use such names too.
    """
    registered = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(source.model_type)
    names = source.config.get("architectures") or []
    return not source.config.get("auto_map") and registered is not None and registered in names


def load_causal_lm(source: Source) -> PreTrainedModel:
    """Load the model in its own layout and add the common forward to its own.

    Raises:
        UserError: a back end that the model lacks, or weights that are missing, unexpected or of another shape.
    """
    return adapt(load_transformers(AutoModelForCausalLM, source, source.attention, strict=True))


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model the common forward and return it; its class keeps its name, so that it is saved as it was."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (CausalLMForward, kind), {"__module__": kind.__module__})
    model.plain_head = _plain_head(model)
    head = model.get_output_embeddings()
    if model.plain_head and type(head) is nn.Linear:
        head.__class__ = OutputLayer  # the same layer, but its call can also give cross-entropies in chunks
    return model


class CausalLMForward:
    """A mixin that adds the common forward to a causal LM; without ``selected`` the model's own forward runs.

    ``plain_head``: the output layer turns the body's hidden states into logits and nothing else does (no scale, no
    cap).
    """

    accepts_loss_kwargs = False
    autoregressive = True
    plain_head = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        selected: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        nll_weights: Tensor | None = None,
        **own: object,
    ) -> MDMOutput:
        """The same as :meth:`~stabledllm.models.families.base.MaskedDiffusionModel.forward`, but autoregressive.

        The token at position i is predicted by the hidden state at i - 1, from the tokens before it alone. Rows that
        are padded on the left are moved to the front; as no token attends to later ones, no mask is needed.

        Raises:
            UserError: packed rows for a model whose attention is not full.
        """
        if selected is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **own)
        order = None if attention_mask is None or segment_ids is not None else padding_last(attention_mask)
        if order is not None:
            input_ids, selected = input_ids.gather(1, order), selected.gather(1, order)
            targets = None if targets is None else targets.gather(1, order)
            position_ids = None if position_ids is None else position_ids.gather(1, order)
        form = {"attention_mask": None, "position_ids": position_ids, "use_cache": False}
        if segment_ids is not None:
            self._require_full_attention()
            form |= attention_arguments(
                self.config._attn_implementation, attention_mask, segment_ids, self.dtype, causal=True
            )
        if self.plain_head:
            return predict(
                self.base_model(input_ids=input_ids, **form)[0],
                self.get_output_embeddings(),
                selected,
                targets,
                shift=True,
                segment_ids=segment_ids,
                nll_weights=nll_weights,
            )
        logits = super().forward(input_ids=input_ids, **form).logits
        row, position = selected.bool().nonzero(as_tuple=True)
        wide = widened(logits[row, predictors(logits, segment_ids)[row, position]])
        if targets is None:
            return MDMOutput(logits=wide)
        return MDMOutput(nll=nn.functional.cross_entropy(wide, targets[row, position], reduction="none"))

    def _require_full_attention(self) -> None:
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(self.config, "sliding_window", None):
            raise UserError(
                f"key 'packing': expected a model with full attention in every layer, found {self.config.model_type!r} "
                f"with another ({', '.join(sorted(kinds | {'a sliding window'} - {'full_attention'}))})."
            )


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> bool:
    """Whether the output layer alone turns the body's hidden states into the logits, tested on one short row."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(5, device=next(model.parameters()).device)[None] % model.config.vocab_size
    try:
        with evaluating(model):
            logits = model(ids, use_cache=False).logits.float()
            own = head(model.base_model(input_ids=ids, use_cache=False)[0]).float()
    except (RuntimeError, TypeError):
        return False
    return own.shape == logits.shape and torch.allclose(own, logits, rtol=1e-3, atol=1e-3)
