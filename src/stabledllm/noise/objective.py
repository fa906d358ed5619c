"""The objective: the quantity that training minimises, whatever method estimates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stabledllm.noise.schedule import EPS
from stabledllm.noise.windows import MaskRatios


@dataclass(frozen=True)
class Objective(MaskRatios):
    """The expected loss that is minimised: a weighting of mask ratios and a mean over rows or tokens.

    ``elbo``: ``E_t E_M[1/P sum_M CE / p_mask]``, the bound on the response's NLL per token.
    ``unweighted``: the same without 1 / p_mask; another objective, not less noise.
    ``power``: ``E_t E_M[1/P sum_M CE p_mask**(a - 1)]`` for a real a = ``power`` >= 0; a = 0 is ``elbo`` and
    a = 1 ``unweighted``. The larger a is, the more high mask ratios weigh.
    ``bell``: ``E_t`` over a bell-shaped density of t in the place of the uniform one, the weight 1 / p_mask kept: a
    Beta density with the parameters ``bell`` (``noise/bell.py``), over the window where there is one.
    ``cosine``: MMaDA's for images, ``E_k E_{|M|=k}[1/k sum_M CE]``: the mean over exactly k = max(1,
    round(P cos(pi u / 2))) masked tokens, u = 1 - t uniform (arXiv:2505.15809); ``eps`` has no effect.
    ``normalization``: mean over the step's rows (the paper's), over its maskable tokens, or over its ``masked`` tokens.
    The last divides by their expected number, ``sum P E[p_mask]``, so that no micro-batch and no step has another
    objective than the next: the limit of a pooled masked mean (docs/objectives.md#the-pooled-masked-mean).
    ``window``: mask ratios from [low, high] alone, uniform; the mean over them, or with ``corrected`` the bound's own
    part ``∫_low^high`` of the integral over all ratios. Under a window or bell every t of this library is the *place*
    in it, from 0 to 1; the mask ratio is :meth:`ratio` of it.
    ``tokens``: weights of single masked tokens (``cart``), or a choice of which are masked (``lift``, ``gift``), on top
    of the weighting of mask ratios (``noise/tokens.py``).

    Raises:
        UserError: an unknown name, a power or bell that the weighting does not take, or a bad window.

    >>> Objective("unweighted").power
    1.0
    >>> Objective(normalization="token").row_share(torch.tensor([1, 3]))
    tensor([0.5000, 1.5000], dtype=torch.float64)
    >>> Objective(window=(0.3, 0.8)).ratio(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.3000, 0.5500, 0.8000])
    """

    weighting: Literal["elbo", "unweighted", "power", "cosine", "bell"] = "elbo"
    normalization: Literal["row", "token", "masked"] = "row"
    eps: float = EPS
    power: float | None = None
    """The exponent a of the extra factor p_mask**a: given for ``power`` only, None for ``cosine``, else filled in."""
    window: tuple[float, float] | None = None
    corrected: bool = False
    bell: tuple[float, float] | None = None
    tokens: Literal["all", "cart", "lift", "gift"] = "all"

    def row_weight(self, maskable: Tensor) -> Tensor:
        """The weight of each row in the step's mean: 1, or P for a mean over tokens; float64, shape (B,)."""
        size = maskable.sum(1).double()
        return size if self.normalization != "row" else torch.ones_like(size)

    def row_share(self, size: Tensor) -> Tensor:
        """The weight of rows of ``size`` maskable tokens divided by their mean weight, float64, shape of ``size``."""
        weight = size.double() if self.normalization != "row" else torch.ones(len(size), dtype=torch.float64)
        return weight / weight.mean()
