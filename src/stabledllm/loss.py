"""The row loss in nats and the one function in the library that takes a mean over rows.

Legend: B rows, K views, L positions, N = number of active views (the rows of the forward pass).
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_losses(nll: Tensor, mask: Tensor, coefficient: Tensor, active: Tensor) -> Tensor:
    """Importance-weighted loss of each row in nats, the mean over its active views, shape (B,); 0 if nothing is masked.

    Args:
        nll: cross-entropies at the masked positions of the active views, row-major, shape (M,).
        mask: the masked tokens of each view, bool, shape (B, K, L).
        coefficient: the factor of each masked token's cross-entropy, shape (B, K, L).
        active: whether each view went through the model, bool, shape (B, K).

    >>> mask, active = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    >>> row_losses(torch.tensor([1.0, 3.0]), mask, torch.full((1, 1, 3), 0.5), active)
    tensor([2.])
    """
    return token_losses(nll, mask, coefficient, active).sum(dim=(1, 2))


def token_losses(nll: Tensor, mask: Tensor, coefficient: Tensor, active: Tensor) -> Tensor:
    """The share of :func:`row_losses` that each token of each view contributes, shape (B, K, L).

    It is float32 or wider whatever ``nll`` is: half precision has 8 or 11 bits, too few for a sum over a row's tokens.

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
    """The factor of each cross-entropy in ``reduce_loss(row_losses(...))``, without the step's weight; shape (M,).

    Args:
        row_weight: shape (B,); the others as in :func:`row_losses`.

    >>> mask, active = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    >>> nll_weights(mask, torch.full((1, 1, 3), 0.5), active, torch.tensor([2.0]))
    tensor([1., 1.])
    """
    share = coefficient / active.sum(1)[:, None, None] * row_weight[:, None, None]
    return share[mask & active[..., None]]


def reduce_loss(loss: Tensor, row_weight: Tensor, step_weight: Tensor | float) -> Tensor:
    """One micro-batch's part of the mean loss over all rows of the optimizer step: ``sum_b w_b l_b / step_weight``.

    ``step_weight`` is the sum of the row weights over the whole step, so that the parts of all micro-batches and ranks
    add up to the mean. A row of weight 0 (a repeat that only evens out ranks) is left out of the mean; a row in which
    nothing is masked counts with loss 0.

    >>> loss, weight = torch.tensor([2.0, 0.0, 4.0, 6.0]), torch.ones(4)
    >>> sum(reduce_loss(loss[part], weight[part], weight.sum()) for part in (slice(3), slice(3, 4)))
    tensor(3.)
    """
    return (loss * row_weight.to(loss)).sum() / step_weight
