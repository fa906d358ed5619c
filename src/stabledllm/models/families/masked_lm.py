"""Any other model with a masked-language-model head (BERT, RoBERTa, ModernBERT, ...), behind the common forward.

Legend: N rows, L positions, S selected positions, V vocabulary, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stabledllm.errors import UserError
from stabledllm.models.adapter_base import INTERFACES
from stabledllm.models.alignment import padding_last
from stabledllm.models.evaluating import evaluating
from stabledllm.models.families.source import Source
from stabledllm.models.families.transformers_own import load_transformers
from stabledllm.models.loss_head import widened
from stabledllm.models.output import MDMOutput


def is_masked_lm(source: Source) -> bool:
    """Whether the architecture is one of transformers' with a masked-language-model head."""
    names = source.config.get("architectures") or []
    return any(name.endswith("ForMaskedLM") for name in names)


def has_own_code(source: Source) -> bool:
    """Whether the model comes with code of its own, behind one of the interfaces that can be a masked LM's."""
    return _own_code(source) is not None


def _own_code(source: Source) -> str | None:
    auto_map = source.config.get("auto_map") or {}
    return next((name for name in INTERFACES if name in auto_map), None)


def load_masked_lm(source: Source) -> PreTrainedModel:
    """Load the model with its own layout and weights; only its forward is replaced.

    A model with code of its own is assumed to be bidirectional with unshifted logits, as this library cannot inspect
    it; that code runs only with ``trust_remote_code``.

    Raises:
        UserError: code that the user does not trust, a back end that is not available, or weights that are missing
            or unexpected.
    """
    own = _own_code(source)
    if source.init_seed is not None and not is_masked_lm(source):
        raise UserError(f"{source.what}: expected one of transformers' own models, found other code.")
    if own is not None and not source.trust_remote_code:
        raise UserError(
            f"{source.what}: expected trust_remote_code=true for a model that comes with code of its own, found false."
        )
    # If none is named, transformers takes sdpa where the model supports it, which not every model's own code does.
    back_end = None if source.attention == "sdpa" else source.attention
    # The files may hold heads that a masked LM does not use, such as BERT's for the next sentence.
    adapted = adapt(
        load_transformers(getattr(transformers, own or "AutoModelForMaskedLM"), source, back_end, strict=False)
    )
    adapted.selects_early = _selects_early(adapted)
    return adapted


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model the common forward and return it; its class keeps its name, so that it is saved as it was."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (MaskedLMForward, kind), {"__module__": kind.__module__})
    return model


class MaskedLMForward:
    """A mixin that gives a masked LM the common forward. ``selects_early``: the head runs at ``selected`` only."""

    accepts_loss_kwargs = False
    selects_early = False

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
        cache: object | None = None,
        **_: object,
    ) -> MDMOutput:
        """The same as :meth:`~stabledllm.models.families.base.MaskedDiffusionModel.forward`.

        Raises:
            UserError: packed rows, a key/value cache, or rows longer than the model's positions.
        """
        if segment_ids is not None or position_ids is not None:
            raise UserError("packing: expected a native family, found a model behind the generic MLM adapter.")
        if cache is not None:
            raise UserError("decoding.cache: expected a native family, found a model behind the generic MLM adapter.")
        limit = _positions(self)
        if limit and input_ids.shape[1] > limit:
            raise UserError(f"rows: expected at most the model's {limit} positions, found {input_ids.shape[1]}.")
        order = None if attention_mask is None else padding_last(attention_mask)
        if order is not None:
            given = (input_ids, attention_mask, selected, targets)
            moved = self.forward(*(None if value is None else value.gather(1, order) for value in given))
            return moved if selected is not None else MDMOutput(logits=_moved_back(moved.logits, order))
        mask = None if attention_mask is None else attention_mask.long()
        if selected is None:
            return MDMOutput(logits=super().forward(input_ids=input_ids, attention_mask=mask).logits)
        selected = selected.bool()
        if self.selects_early:
            hook = self.base_model.register_forward_hook(lambda _, __, output: _only_selected(output, selected))
            try:
                logits = super().forward(input_ids=input_ids, attention_mask=mask).logits[0]
            finally:
                hook.remove()
        else:
            logits = super().forward(input_ids=input_ids, attention_mask=mask).logits[selected]
        wide = widened(logits)
        if targets is None:
            return MDMOutput(logits=wide)
        return MDMOutput(nll=F.cross_entropy(wide, targets[selected], reduction="none"))


def _positions(model: PreTrainedModel) -> int | None:
    """The length of the longest row; RoBERTa's table of positions begins with padding's, which no token has."""
    limit = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    before = getattr(table, "padding_idx", None)
    return limit if limit is None or before is None else limit - before - 1


def _moved_back(logits_NLV: Tensor, order_NL: Tensor) -> Tensor:
    return logits_NLV.gather(1, order_NL.argsort(1)[..., None].expand_as(logits_NLV))


def _only_selected(output, selected: Tensor):
    """The body's output with the selected positions as one row, (1, S, D)."""
    output[next(iter(output))] = output[0][selected][None]
    return output


@torch.no_grad()
def _selects_early(model: PreTrainedModel) -> bool:
    """Whether the head works position by position, tested on one short row; it may then run at selected ones only."""
    device = next(model.parameters()).device
    ids = torch.arange(5, device=device)[None] % model.config.vocab_size
    selected = torch.tensor([[True, False, True, True, False]], device=device)
    try:
        with evaluating(model):
            all_logits = model(ids, torch.ones_like(ids)).logits[selected].float()
            model.selects_early = True
            few = model(ids, torch.ones_like(ids), selected).logits
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError, StopIteration):
        return False
    finally:
        model.selects_early = False
    return few.shape == all_logits.shape and torch.allclose(few, all_logits, rtol=1e-3, atol=1e-3)
