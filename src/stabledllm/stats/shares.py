"""The spread over rows of losses that are averaged by token instead of by row.

A step's token mean varies as the mean of ``s (l - m)`` does, where s = P / E[P] is a row's share and m the token mean.
Losses are measured as x = s l, so that the spread to report is that of ``x - s m``, not that of x.
"""

from __future__ import annotations

from torch import Tensor


def token_mean(x: Tensor, share: Tensor | None) -> Tensor:
    """The token mean m: the mean of x (losses times shares) divided by the mean of the shares, both of shape (a,).

    >>> import torch
    >>> token_mean(torch.tensor([0.5, 3.0]), torch.tensor([0.5, 1.5]))
    tensor(1.7500)
    """
    return x.mean() if share is None else x.sum() / share.sum()


def spread_change(x: Tensor, share: Tensor | None) -> float:
    """The difference ``Var(x - s m) - Var(x)`` over rows; 0 where every row counts the same.

    Noise in the measured x enters both variances alike and cancels.

    >>> import torch
    >>> spread_change(torch.tensor([0.5, 1.5]), torch.tensor([0.5, 1.5]))
    -0.5
    """
    if share is None:
        return 0.0
    return float((x - share * token_mean(x, share)).var() - x.var())


def shares_of(share: Tensor | None, keep: Tensor) -> Tensor | None:
    """The shares of some rows, None where every row counts the same.

    >>> import torch
    >>> shares_of(torch.tensor([0.5, 1.5]), torch.tensor([1]))
    tensor([1.5000])
    """
    return None if share is None else share[keep]


def vector_spread_change(cross: Tensor, own: Tensor, total: Tensor, share: Tensor) -> Tensor:
    """The same as :func:`spread_change` for vectors, as the trace of a covariance, shape (Q,).

    It uses products of different rows only: a row's own square holds its own noise.

    Args:
        cross: products of each row's vector with the sum of all, shape (Q, a), its own square among them.
        own: squares of the rows' vectors, (Q, a).
        total: square of their sum, (Q,).
        share: shape (a,).

    >>> import torch
    >>> x = torch.tensor([0.5, 1.5])  # rows that count the same
    >>> vector_spread_change((x * x.sum())[None], x.square()[None], x.sum().square()[None], torch.ones(2))
    tensor([0.])
    """
    n, weight = len(share), share.sum()
    pairs = total - own.sum(1)
    with_mean = (cross - own) @ share / weight
    return (-2 * with_mean + (share**2).sum() / weight**2 * pairs + pairs / n) / (n - 1)
