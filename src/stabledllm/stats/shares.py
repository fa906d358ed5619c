"""What the token mean changes of a spread over rows.

A step's token mean varies as the mean of ``s (l - m)`` does, s = P / E[P] a row's share and m the token mean: losses
are measured times s, and their spread over rows is that of ``x - s m``, not of x.
"""

from __future__ import annotations

from torch import Tensor


def token_mean(x: Tensor, share: Tensor | None) -> Tensor:
    """m: the mean of x, which holds the shares, over that of the shares. Both of shape (a,).

    >>> import torch
    >>> token_mean(torch.tensor([0.5, 3.0]), torch.tensor([0.5, 1.5]))
    tensor(1.7500)
    """
    return x.mean() if share is None else x.sum() / share.sum()


def spread_change(x: Tensor, share: Tensor | None) -> float:
    """``Var(x - s m) - Var(x)`` over rows; 0 where every row counts the same.

    Noise of the rows' x is the same in both variances and drops out.
    """
    if share is None:
        return 0.0
    return float((x - share * token_mean(x, share)).var() - x.var())


def kept(share: Tensor | None, keep: Tensor) -> Tensor | None:
    """The shares of some rows."""
    return None if share is None else share[keep]


def vector_spread_change(cross: Tensor, own: Tensor, total: Tensor, share: Tensor) -> Tensor:
    """The same for vectors, a trace, from products of different rows only, shape (Q,).

    Args:
        cross: products of each row's vector with the sum of all, shape (Q, a), its own square among them.
        own: squares of the rows' vectors, (Q, a). total: square of their sum, (Q,). share: shape (a,).
    """
    n, weight = len(share), share.sum()
    pairs = total - own.sum(1)
    with_mean = (cross - own) @ share / weight
    return (-2 * with_mean + (share**2).sum() / weight**2 * pairs + pairs / n) / (n - 1)
