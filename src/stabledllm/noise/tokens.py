"""Objectives that weigh or choose single tokens: CART, LIFT and GIFT; their rules, without a model.

Sources, as read from code: CART from Dream-Coder's SFT trainer; LIFT from arXiv:2605.22939 and its repository; GIFT
(arXiv:2509.20863) as in LIFT's repository. What is ours in them is said in docs/objectives.md#single-tokens.

Legend: B rows, K views, L positions, P maskable tokens of a row; p the masking probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.objective import Objective

CART_P = 0.1
_REACH = 400
"""Distance beyond which a visible token adds less than 1e-19 to a weight of CART."""
_AT_ONCE = 512
_LEAST_FURTHER = 0.1
_LEAST_POWER = 0.1


def cart_weights(visible: Tensor) -> Tensor:
    """CART's weight of each position, ``sum over visible j of 1/2 p (1 - p)^(|i - j| - 1)`` with p = 0.1; float64.

    It is 1 inside a long text that is visible everywhere else, and 0 where nothing is visible.

    Args:
        visible: which tokens the model sees, bool, (..., L); neither masked ones nor padding.

    >>> cart_weights(torch.tensor([[True, False, True]]))[0, 1]
    tensor(0.1000, dtype=torch.float64)
    """
    length, seen = visible.shape[-1], visible.double()
    position = torch.arange(length, device=visible.device)
    out = torch.zeros_like(seen)
    for start in range(0, length, _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        near = slice(max(0, start - _REACH), start + _AT_ONCE + _REACH)
        distance = (position[near, None] - position[here]).abs().double()
        out[..., here] = seen[..., near] @ torch.where(distance > 0, CART_P / 2 * (1 - CART_P) ** (distance - 1), 0.0)
    return out


def further_ratio(p: Tensor, u: Tensor) -> Tensor:
    """LIFT's rho, by which more tokens than are masked in the end are masked at first: ``U[0.1, 1 - p]``; shape of p.

    It is 0 where 1 - p is no more than 0.1: nothing is chosen there.

    Args:
        u: uniform on [0, 1).

    >>> further_ratio(torch.tensor([0.5, 0.95]), u=torch.tensor([0.5, 0.5]))
    tensor([0.3000, 0.0000])
    """
    room = 1 - p
    return torch.where(room > _LEAST_FURTHER, _LEAST_FURTHER + u * (room - _LEAST_FURTHER), torch.zeros_like(room))


def choice(p: Tensor) -> Tensor:
    """Which tokens LIFT keeps masked: 1 the easiest (p > 2/3), -1 the hardest (p < 1/3), 0 any; int64, shape of p.

    >>> choice(torch.tensor([0.2, 0.5, 0.9]))
    tensor([-1,  0,  1])
    """
    return (p > 2 / 3).long() - (p < 1 / 3).long()


def kept(nll: Tensor, among: Tensor, count: Tensor, side: Tensor) -> Tensor:
    """The ``count`` tokens of those ``among`` which are easiest (``side`` 1) or hardest (-1) to predict.

    Args:
        nll: cross-entropies, (..., L). among: bool, (..., L). count, side: int64, shape (...).

    >>> nll, among = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([True, True, True])
    >>> kept(nll, among, torch.tensor(2), torch.tensor(-1))
    tensor([False,  True,  True])
    """
    keyed = (nll * side[..., None]).masked_fill(~among, torch.inf)
    order = keyed.argsort(dim=-1, stable=True)
    places = torch.arange(nll.shape[-1], device=nll.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places) < count[..., None]


def p_given_count(count: Tensor, size: Tensor, u: Tensor, objective: Objective) -> Tensor:
    """A masking probability drawn from its law given that ``count`` tokens are masked; float64, shape of ``count``.

    An exact count has no t of its own. With this one, what depends on t and on the count has the expectation that
    independent masks give it: the law is that of p given the count, weighed as the objective weighs p,
    ``p^(k - 1 + a) (1 - p)^(P - k)``, a beta distribution between the least and the largest p. Drawn on the CPU, so
    that it is the same on every device.

    Args:
        count: int64, (B, K). size: P of each row, (B,). u: uniform, (B, K). objective: of whole power, without a bell.

    >>> half = torch.tensor([[0.5]])
    >>> p_given_count(torch.tensor([[1]]), torch.tensor([1]), half, Objective("unweighted", eps=0.0)) ** 2
    tensor([[0.5000]], dtype=torch.float64)
    """
    from scipy import special

    k = count.clamp(min=1).cpu().double().numpy()
    alpha, beta = k + objective.power, (size[:, None].cpu() - k + 1).numpy()
    low, high = (special.betainc(alpha, beta, end) for end in objective.bounds)
    p = special.betaincinv(alpha, beta, low + u.cpu().numpy() * (high - low))
    return torch.as_tensor(p, dtype=torch.float64).clamp(*objective.bounds).to(count.device)


def gift_probabilities(entropy: Tensor, maskable: Tensor, p: Tensor) -> Tensor:
    """GIFT's masking probability of each token, ``1 - (1 - p)^(beta_i / mean beta)`` with beta = sqrt(entropy).

    Args:
        entropy: of each maskable token's prediction with the whole response masked, in nats, (B, L); elsewhere 0.
        maskable: bool, (B, L). p: masking probability of each row, (B,).

    Returns:
        (B, L); for beta_i below a tenth of the mean the tenth, so that no token's weight exceeds about 10 / p. Where
        every entropy is 0 it is p.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> gift_probabilities(torch.tensor([[1.0, 9.0]]), one, torch.tensor([0.75]))  # beta 1 and 3, mean 2
    tensor([[0.5000, 0.8750]])
    """
    beta = entropy.clamp(min=0).sqrt() * maskable
    mean = beta.sum(1, keepdim=True) / maskable.sum(1, keepdim=True).clamp(min=1)
    power = torch.where(mean > 0, beta / mean.clamp(min=1e-300), torch.ones_like(beta)).clamp(min=_LEAST_POWER)
    return -torch.expm1(power * torch.log1p(-p)[:, None])
