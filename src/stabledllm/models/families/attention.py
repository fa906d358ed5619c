"""Which tokens attend to which, in the form that each attention back end takes.

Legend: N rows, L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from stabledllm.errors import UserError
from stabledllm.models.choices import check_attention
from stabledllm.runtime.device import on_cpu

FLEX = "flex_attention"
"""The back end that takes masks in blocks as they are, and leaves out what they forbid."""


def check_back_end(name: str) -> str:
    """Return the name of an attention back end that can run on this machine.

    Raises:
        UserError: an unknown back end, or one that is not installed.
    """
    check_attention(name)
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "attention 'flash_attention_2': expected the package flash-attn and a CUDA device, found it not installed; "
            "'sdpa' uses PyTorch's own flash kernels."
        )
    if name == FLEX and (on_cpu() or not torch.cuda.is_available()):
        raise UserError(
            "attention 'flex_attention': expected a CUDA device, since PyTorch trains with it nowhere else, found none"
            "; write 'sdpa', which gives the same numbers."
        )
    return name


def attention_arguments(
    back_end: str,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    dtype: torch.dtype,
    *,
    causal: bool = False,
    within: Tensor | None = None,
) -> dict:
    """Keyword arguments of a layer's attention, so that a token attends to the real tokens of its own segment only.

    Args:
        attention_mask: False at padding (on the right), shape (N, L); None: no padding.
        segment_ids: equal for tokens of one packed row, shape (N, L); None: each row is one segment.
        dtype: the dtype of the hidden states.
        causal: also forbid attention to later tokens; needed for packed rows, where the back ends do not do so.
        within: allow at most these pairs of query and key, which hold each token and itself; bool, (N or 1, L, L).

    Raises:
        UserError: ``within`` with flash attention, which takes no such mask.
    """
    if attention_mask is not None:
        attention_mask = attention_mask.bool()
        # The kernels are faster without a mask; reading its values would break a compiled graph.
        if not torch.compiler.is_compiling() and bool(attention_mask.all()):
            attention_mask = None
    if within is not None:
        return {"attention_mask": as_mask(back_end, _narrowed(within, attention_mask, segment_ids), dtype)}
    if attention_mask is None and segment_ids is None:
        return {"attention_mask": None}
    if back_end.startswith("flash"):
        return _sequence_bounds(attention_mask, segment_ids)
    allowed = _allowed(attention_mask, segment_ids)
    if causal:
        allowed = allowed.tril()
    return {"attention_mask": as_mask(back_end, allowed, dtype)}


def as_mask(back_end: str, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Pairs, bool, (N or 1, 1, L, L), as a back end takes them: numbers to add to the scores, or bool for SDPA.

    Raises:
        UserError: flash attention, which takes no such mask.
    """
    if back_end.startswith("flash"):
        raise UserError(
            f"attention: expected 'sdpa' or 'eager' for attention that is annealed or in blocks, found '{back_end}'."
        )
    if back_end in ("eager", FLEX):
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return allowed


def _narrowed(within: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
    """The pairs that are both ``within`` and allowed, (N or 1, 1, L, L); a token at padding still sees itself."""
    if attention_mask is None and segment_ids is None:
        return within[:, None]
    itself = torch.eye(within.shape[-1], dtype=torch.bool, device=within.device)
    return within[:, None] & _allowed(attention_mask, segment_ids) | itself


def _allowed(attention_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
    """True where query q may see key k, shape (N, 1, L or 1, L)."""
    if segment_ids is None:
        return attention_mask[:, None, None, :]
    allowed = segment_ids[:, :, None] == segment_ids[:, None, :]
    if attention_mask is not None:
        # Padding attends to itself, so that no softmax is taken over an empty set.
        itself = torch.eye(segment_ids.shape[1], dtype=torch.bool, device=segment_ids.device)
        allowed = (allowed & attention_mask[:, None, :]) | itself
    return allowed[:, None]


def _sequence_bounds(attention_mask: Tensor | None, segment_ids: Tensor | None) -> dict:
    """Arguments for the batch as one flat sequence of segments; padding after a segment is a segment of its own."""
    labels = attention_mask if segment_ids is None else segment_ids
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    if segment_ids is not None and attention_mask is not None:
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    total = torch.tensor([labels.numel()], device=labels.device)
    bounds = torch.cat((starts.flatten().nonzero().flatten(), total)).to(torch.int32)
    longest = int(bounds.diff().max())
    return {
        "attention_mask": None,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
