"""The objective: the quantity that training minimises, whatever method estimates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stabledllm.errors import UserError, did_you_mean
from stabledllm.noise.schedule import EPS, Counts
from stabledllm.noise.weightings import WEIGHTINGS, power_of

NORMALIZATIONS = ("row", "token")


@dataclass(frozen=True)
class Objective:
    """The expected loss that is minimised: a weighting of mask ratios and a mean over rows or tokens.

    ``elbo``: ``E_t E_M[1/P sum_M CE / p_mask]``, the bound on the response's NLL per token.
    ``unweighted``: the same without 1 / p_mask; another objective, not less noise.
    ``power``: ``E_t E_M[1/P sum_M CE p_mask**(a - 1)]`` for a real a = ``power`` >= 0; a = 0 is ``elbo`` and
    a = 1 ``unweighted``. The larger a is, the more high mask ratios weigh.
    ``cosine``: MMaDA's for images, ``E_k E_{|M|=k}[1/k sum_M CE]``: the mean over exactly k = max(1,
    round(P cos(pi u / 2))) masked tokens, u = 1 - t uniform (arXiv:2505.15809); ``eps`` has no effect.
    ``normalization``: mean over the step's rows (the paper's), or over its maskable tokens.

    Raises:
        UserError: an unknown weighting or normalization, or a power that the weighting does not take.

    >>> Objective("unweighted").power
    1.0
    >>> Objective(normalization="token").row_share(torch.tensor([1, 3]))
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """

    weighting: Literal["elbo", "unweighted", "power", "cosine"] = "elbo"
    normalization: Literal["row", "token"] = "row"
    eps: float = EPS
    power: float | None = None
    """The exponent a of the extra factor p_mask**a: given for ``power`` only, None for ``cosine``, else filled in."""

    def __post_init__(self) -> None:
        for key, known in (("weighting", WEIGHTINGS), ("normalization", NORMALIZATIONS)):
            if (value := getattr(self, key)) not in known:
                raise UserError(f"objective.{key}: unknown '{value}'{did_you_mean(value, known)}.")
        object.__setattr__(self, "power", power_of(self.weighting, self.power))

    @property
    def counts(self) -> Counts:
        """The rule by which the number of masked tokens follows from t."""
        return "cosine" if self.weighting == "cosine" else "linear"

    def row_weight(self, maskable: Tensor) -> Tensor:
        """The weight of each row in the step's mean: 1, or P for the token mean; float64, shape (B,)."""
        size = maskable.sum(1).double()
        return size if self.normalization == "token" else torch.ones_like(size)

    def row_share(self, size: Tensor) -> Tensor:
        """The weight of rows of ``size`` maskable tokens divided by their mean weight, float64, shape of ``size``."""
        weight = size.double() if self.normalization == "token" else torch.ones(len(size), dtype=torch.float64)
        return weight / weight.mean()
