"""What a masker gets and what it must give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.views import Views


@dataclass(frozen=True)
class MaskInput:
    """One step's rows as a masker sees them. B rows, K views, L positions."""

    t: Tensor
    """Mask ratio, float64, shape (B,)."""
    uniforms: Tensor
    """Shape (B, K, L), float64."""
    views: Views
    """The coupling that the uniforms come from; a fixed count asks it for ranks."""
    maskable: Tensor
    """The P tokens of each row that may be masked, bool, shape (B, L)."""
    sampler: TSampler
    """The density t was drawn from."""
    eps: float
    power: float
    """a in the weight p_mask**(a - 1): 0 for the ELBO, 1 for the unweighted objective."""
    delimiter: Tensor | None = None
    """Answer delimiters, bool, shape (B, L); only ISAD reads it."""


class Masker(Protocol):
    """Masks tokens so that ``sum(coefficient * CE)`` estimates the row's objective.

    ``coefficient`` is 0 where nothing is masked and already holds 1/P, the importance weight of t
    and the objective's weight; it does not hold the average over views.
    """

    independent: bool
    """Whether each token is masked by itself, so that a mask may hide nothing."""
    counted: bool
    """Whether masks depend on t through a count alone."""

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        """``(mask, coefficient, weight)``: shapes (B, K, L) bool, (B, K, L) and (B,) float64."""
        ...

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """The density whose reciprocal is the weight of a row of ``size`` maskable tokens, t drawn from ``sampler``."""
        ...
