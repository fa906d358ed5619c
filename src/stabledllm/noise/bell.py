"""Bells: a Beta density of the mask ratio, as the weighting of an objective or as the density that a method draws from.

The published bell (arXiv:2605.13026) is known to us from its abstract, which does not give its shape: the Beta density,
of which Beta(2, 2) is ``6 t (1 - t)``, is our reading. Loads no torch until ratios or counts are asked for.

Legend: P maskable tokens of a row, k masked ones; r in [0, 1] the place of p_mask between its least and largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from stabledllm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from stabledllm.noise.densities import Tabulated

Bell = tuple[float, float]
"""The parameters a and b of ``w(r) = r^(a-1) (1-r)^(b-1) / B(a, b)``."""
USUAL: Bell = (2.0, 2.0)
"""The bell without a word: 6 r (1 - r), to which CART's weights come close (docs/objectives.md#cart)."""
_MOST = 100.0
_CELLS = 256
_UNIFORM_SHARE = 0.05


def checked_bell(bell: Sequence[float] | None, weighting: str) -> Bell | None:
    """The parameters of an objective's bell: given, or the usual ones; None for another weighting.

    Raises:
        UserError: a bell beside another weighting, or anything but two numbers from 1 to 100.

    >>> checked_bell(None, "bell"), checked_bell(None, "elbo")
    ((2.0, 2.0), None)
    """
    if weighting != "bell":
        if bell is not None:
            raise UserError(
                f"objective.bell: expected objective.weighting=bell beside it, found '{weighting}'; write "
                f"objective.weighting=bell, or leave it out."
            )
        return None
    bell = USUAL if bell is None else tuple(bell)
    if len(bell) != 2 or not all(1.0 <= x <= _MOST for x in bell):
        raise UserError(
            f"objective.bell: expected two numbers from 1 to {_MOST:g}, the parameters of a Beta density, such as "
            f"[2, 2], found {list(bell)}."
        )
    return float(bell[0]), float(bell[1])


def quantile(u: Tensor, bell: Bell) -> Tensor:
    """The place r of which a share u of the bell lies below; shape and dtype of ``u``. The same on every device.

    >>> import torch
    >>> quantile(torch.tensor([0.0, 0.5, 1.0]), (2.0, 2.0))
    tensor([0.0000, 0.5000, 1.0000])
    """
    import torch
    from scipy import special

    values = special.betaincinv(*bell, u.detach().cpu().double().numpy())
    return torch.as_tensor(values, dtype=u.dtype, device=u.device)


def share_below(r: float, bell: Bell) -> float:
    """The share of the bell that lies below r, the inverse of :func:`quantile`.

    >>> round(share_below(0.25, (2.0, 2.0)), 5)
    0.15625
    """
    from scipy import special

    return float(special.betainc(*bell, r))


def density(r: Tensor, bell: Bell) -> Tensor:
    """The bell's value at r, same shape.

    >>> import torch
    >>> density(torch.tensor([0.5]), (2.0, 2.0))
    tensor([1.5000])
    """
    import torch

    a, b = bell
    log = (a - 1) * torch.log(r) + (b - 1) * torch.log1p(-r) - _log_beta(a, b)
    flat = (r * 0 if a == 1 else (a - 1) * torch.log(r)) + (r * 0 if b == 1 else (b - 1) * torch.log1p(-r))
    return torch.where(log.isnan(), flat - _log_beta(a, b), log).exp()


@lru_cache(maxsize=2048)
def count_law(size: int, bell: Bell, least: float, most: float, power: float) -> Tensor:
    """``E[C(P,k) p^(k-1+power) (1-p)^(P-k)]`` for k = 1..P; float64, (P,).

    p = least + (most - least) r, with r from the bell.
    With ``power`` 0 these are the c_k of :func:`~stabledllm.noise.counts.count_coefficients` under a bell, with 1 the
    probabilities of the counts. The integrand is a polynomial in r, so that Gauss-Jacobi nodes are exact but for
    rounding; where p = r the closed form is used.

    Args:
        power: a whole number.

    >>> count_law(2, (1.0, 1.0), 0.0, 1.0, power=1)  # a flat bell: all counts 0 to P are alike
    tensor([0.3333, 0.3333], dtype=torch.float64)
    """
    import torch

    from stabledllm.noise.counts import log_gamma

    k = torch.arange(1, size + 1, dtype=torch.float64)
    ways = log_gamma(size + 1) - log_gamma(k + 1) - log_gamma(size - k + 1)
    hits, rest = k - 1 + power, size - k
    if (least, most) == (0.0, 1.0):
        a, b = hits + bell[0], rest + bell[1]
        return (ways + log_gamma(a) + log_gamma(b) - log_gamma(a + b) - _log_beta(*bell)).exp()
    r, weight = _nodes(1 << ((size + int(power)) // 2 + 1).bit_length(), bell)
    p = least + (most - least) * torch.from_numpy(r)[:, None]
    return (torch.from_numpy(weight)[:, None] * (ways + hits * torch.log(p) + rest * torch.log1p(-p)).exp()).sum(0)


@lru_cache(maxsize=32)
def _nodes(n: int, bell: Bell):
    """Gauss-Jacobi nodes on [0, 1] and weights that add up to 1: exact for polynomials of degree 2n - 1."""
    from scipy import special

    # scipy's weight is (1 - x)^alpha (1 + x)^beta on [-1, 1], x = 2 r - 1.
    x, weight = special.roots_jacobi(n, bell[1] - 1, bell[0] - 1)
    return (1 + x) / 2, weight / weight.sum()


def _log_beta(a: float, b: float) -> float:
    from math import lgamma

    return lgamma(a) + lgamma(b) - lgamma(a + b)


def check_shape(shape: float) -> None:
    """Refuse a shape of the method part ``bell`` that is no bell's.

    Raises:
        UserError: for a shape outside [1, 100].

    >>> check_shape(0.5)
    Traceback (most recent call last):
    stabledllm.errors.UserError: bell: expected a shape from 1 to 100, found bell=0.5.
    """
    if not 1.0 <= shape <= _MOST:
        raise UserError(f"bell: expected a shape from 1 to {_MOST:g}, found bell={shape:g}.")


def proposal(shape: float) -> Tabulated:
    """The density of the method part ``bell``: Beta(shape, shape) in cells, with a share of the uniform density in it.

    E[weight] = 1, and no weight exceeds 20: the bell alone would have unbounded weights at both ends.

    Raises:
        UserError: for a shape outside [1, 100].

    >>> float(proposal(2.0).weight(__import__("torch").tensor([0.0]))) < 20
    True
    """
    import torch
    from scipy import special

    from stabledllm.noise.densities import Tabulated

    check_shape(shape)
    masses = torch.from_numpy(special.betainc(shape, shape, torch.linspace(0, 1, _CELLS + 1).double().numpy())).diff()
    return Tabulated(_UNIFORM_SHARE + (1 - _UNIFORM_SHARE) * masses * _CELLS, name="bell")
