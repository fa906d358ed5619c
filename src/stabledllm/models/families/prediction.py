"""From hidden states to cross-entropies or logits, at the positions that carry loss and nowhere else.

Legend: N rows, L positions, S selected positions, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabledllm.models.loss_head import head_nll, widened
from stabledllm.models.output import MDMOutput


def predict(
    hidden_NLD: Tensor,
    head: nn.Module,
    selected: Tensor | None,
    targets: Tensor | None,
    *,
    shift: bool = False,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    nll_weights: Tensor | None = None,
) -> MDMOutput:
    """Cross-entropies (S,) of ``targets`` at ``selected``, in row-major order, in nats; logits without ``targets``.

    Args:
        selected, targets: (N, L). Without ``selected``: all logits, (N, L, V).
        shift: position i is predicted by the hidden state at i - 1, the first of a row or segment by its own.
        nll_weights: the loss's weight of each cross-entropy, up to a common factor, (S,); changes no result.
    """
    if selected is None:
        if shift:
            before = predictors(hidden_NLD, segment_ids, attention_mask)
            hidden_NLD = hidden_NLD.gather(1, before[..., None].expand_as(hidden_NLD))
        return MDMOutput(logits=head(hidden_NLD))
    selected = selected.bool()
    if shift:
        row, position = selected.nonzero(as_tuple=True)
        hidden_SD = hidden_NLD[row, predictors(hidden_NLD, segment_ids, attention_mask)[row, position]]
    else:
        hidden_SD = hidden_NLD[selected]
    if targets is None:
        return MDMOutput(logits=widened(head(hidden_SD)))
    return MDMOutput(nll=head_nll(head, hidden_SD, targets[selected], nll_weights))


def predictors(hidden_NLD: Tensor, segment_ids: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
    """The position whose hidden state predicts each position under shifted logits, shape (N, L).

    The first token of a row or segment has its own: before it is only padding or another segment.
    """
    own = torch.arange(hidden_NLD.shape[1], device=hidden_NLD.device).expand(hidden_NLD.shape[:2])
    first = own == 0
    if segment_ids is not None:
        first = first | (segment_ids != segment_ids.roll(1, dims=1))
    if attention_mask is not None:
        first = first | ~attention_mask.bool().roll(1, dims=1)
    return torch.where(first, own, own - 1)
