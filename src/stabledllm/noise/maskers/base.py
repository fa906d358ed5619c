"""The input and the base class of maskers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.objective import Objective
from stabledllm.noise.rows import Rows
from stabledllm.noise.views import Views


@dataclass(frozen=True)
class MaskInput:
    """The rows of a micro-batch as a masker sees them. B rows, K views, L positions.

    >>> import torch
    >>> from stabledllm.noise.maskers.fixed_count import FixedCount
    >>> from stabledllm.noise.methods import Single, Uniform
    >>> t, u, maskable = torch.tensor([0.5]), torch.tensor([[[0.4, 0.1, 0.9, 0.2]]]), torch.ones(1, 4, dtype=torch.bool)
    >>> rows = Rows(torch.tensor([0]), 1, maskable, torch.arange(4))
    >>> FixedCount()(MaskInput(t, u, Single(), rows, Uniform(), Objective()))[0].tolist()
    [[[False, True, False, True]]]
    """

    t: Tensor
    """Mask ratios, float64, shape (B,)."""
    uniforms: Tensor
    """Float64, shape (B, K, L)."""
    views: Views
    """The coupling that the uniforms come from; a fixed count takes ranks from it."""
    rows: Rows
    """The rows, with the P tokens of each that may be masked."""
    sampler: TSampler
    """The density that t was drawn from."""
    objective: Objective
    """What the loss estimates: its eps, and the exponent a in the weight p_mask**(a - 1)."""

    @property
    def size(self) -> Tensor:
        """P of each row, int64, shape (B,)."""
        return self.rows.maskable.sum(1)


class Masker(ABC):
    """A rule that masks tokens so that ``sum(coefficient * CE)`` estimates the row's objective.

    ``coefficient`` is 0 where nothing is masked. It holds 1/P, the importance weight of t and the
    objective's weight, but not the average over views.
    """

    independent = False
    """Whether each token is masked independently of the others, so that a mask may be empty."""
    counted = False
    """Whether masks depend on t only through the number of masked tokens."""

    @abstractmethod
    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        """``(mask, coefficient, weight)``: shapes (B, K, L) bool, (B, K, L) and (B,) float64."""

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """The density q such that a row of ``size`` maskable tokens, t drawn from ``sampler``, has the weight 1 / q."""
        return sampler
