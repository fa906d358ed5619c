"""The row loss in nats and the one function in the library that takes a mean over rows.

Legend: B rows, K views, L positions, N = number of active views (the rows of the forward pass).
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_losses(nll: Tensor, mask: Tensor, coefficient: Tensor, active: Tensor) -> Tensor:
    """Importance-weighted loss of each row in nats, its views averaged; 0 where nothing was masked.

    Args:
        nll: cross-entropies at the masked positions of the active views, row-major, shape (M,).
        mask, coefficient: shape (B, K, L). active: bool, shape (B, K).

    >>> mask, active = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    >>> row_losses(torch.tensor([1.0, 3.0]), mask, torch.full((1, 1, 3), 0.5), active)
    tensor([2.])
    """
    return token_losses(nll, mask, coefficient, active).sum(dim=(1, 2))


def token_losses(nll: Tensor, mask: Tensor, coefficient: Tensor, active: Tensor) -> Tensor:
    """What each token of each view adds to :func:`row_losses`, shape (B, K, L); float32 or wider, whatever ``nll`` is.

    Half precision has 8 or 11 bits, which a sum over a row's tokens would lose.

    >>> mask, active = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    >>> token_losses(torch.tensor([1.0, 3.0]), mask, torch.full((1, 1, 3), 0.5), active)
    tensor([[[0.5000, 1.5000, 0.0000]]])
    """
    used = mask & active[..., None]
    share = coefficient / active.sum(1)[:, None, None]
    nll = nll.to(torch.promote_types(nll.dtype, torch.float32))
    contribution = torch.zeros(mask.shape, dtype=nll.dtype, device=nll.device)
    return contribution.masked_scatter(used, nll * share[used].to(nll.dtype))


def nll_weights(mask: Tensor, coefficient: Tensor, active: Tensor, row_weight: Tensor) -> Tensor:
    """What each cross-entropy is multiplied by in ``reduce_loss(row_losses(...))``, but for the step's weight; (M,).

    Args:
        row_weight: shape (B,); the others as in :func:`row_losses`.
    """
    share = coefficient / active.sum(1)[:, None, None] * row_weight[:, None, None]
    return share[mask & active[..., None]]


def reduce_loss(loss: Tensor, row_weight: Tensor, step_weight: Tensor | float) -> Tensor:
    """This micro-batch's part of the mean over the whole optimizer step's rows.

    Parts add up over micro-batches and ranks: ``sum_b w_b l_b / step_weight``, where ``step_weight`` is
    the sum of the weights over the whole step. A row of weight 0 (a repeat that only evens out
    ranks) counts nowhere; a row with nothing masked counts as 0.

    >>> loss, weight = torch.tensor([2.0, 0.0, 4.0, 6.0]), torch.ones(4)
    >>> sum(reduce_loss(loss[part], weight[part], weight.sum()) for part in (slice(3), slice(3, 4)))
    tensor(3.)
    """
    return (loss * row_weight.to(loss.dtype)).sum() / step_weight
