"""Where u comes from. The n points always span the whole optimizer step (ranks x accumulation x rows).

Every source gives each row a marginally uniform u; they differ only in the joint law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.streams import Key, Stream


@dataclass(frozen=True)
class OverU:
    """A vector-valued function h of u on a fine grid, cut into the cells that a source spreads its points over.

    Legend: b entries of h.
    """

    variance: Tensor
    """Cov_u h, shape (b, b)."""
    cells: Tensor
    """Mean of h in each cell less its mean over all, shape (cells, b)."""
    offsets: Tensor
    """Mean of h over the cells at each place within a cell less its mean over all, shape (places, b)."""


@dataclass(frozen=True)
class IID:
    """Independent uniforms, one per row."""

    name = "iid"
    independent = True
    """Whether the rows of a step are independent."""

    def count(self, n: int) -> int:
        """Cells of equal width that the points of a step of n rows are spread over."""
        return n

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """``(left, removed)``: of Cov_u h, what is left in n Cov(step mean of h) and what is not; each (b, b)."""
        return h.variance, torch.zeros_like(h.variance)

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        """u of all n rows of the step, float64, shape (n,)."""
        return key.row_uniforms(Stream.RATE, torch.arange(n, device=device))


@dataclass(frozen=True)
class Stratified:
    """StraTS: floor(n / k) points per stratum, the rest in distinct random strata, randomly permuted.

    The permutation makes each row's u uniform; dealing strata round-robin would not (arXiv:2511.18159,
    StraTS; k defaults to ceil(sqrt(n))).

    Raises:
        UserError: for fewer than one stratum.
    """

    strata: int | None = None
    name = "strats"
    independent = False

    def __post_init__(self) -> None:
        if self.strata is not None and self.strata < 1:
            raise UserError(f"strats: expected at least 1 stratum, found strata={self.strata}.")

    def count(self, n: int) -> int:
        """Number of strata for a step of n rows."""
        return self.strata or math.ceil(math.sqrt(n))

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """What varies within strata is left, and the n mod k extra points as a simple random sample of strata."""
        k = len(h.cells)
        extra, squares = n % k, h.cells.T @ h.cells
        among_extra = extra * (1 - extra / k) * squares / (k - 1) / n if extra else 0.0
        removed = squares / k - among_extra
        return h.variance - removed, removed

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        k = self.count(n)
        streams = (Stream.RATE, Stream.PERMUTATION, Stream.STRATUM)
        within, order, drawn = key.several(streams, max(n, k), device)
        every = torch.arange(k, device=device).repeat(n // k)
        extra = drawn[:k].argsort(stable=True)[: n % k]
        stratum = torch.cat((every, extra))[order[:n].argsort(stable=True)]
        within = within[:n]
        return ((stratum + within) / k).clamp(max=1 - 2.0**-53)


@dataclass(frozen=True)
class LowDiscrepancy:
    """The shifted lattice (u0 + i / n) mod 1 (VDM, arXiv:2107.00630), dealt to the rows at random."""

    name = "lowdisc"
    independent = False

    def count(self, n: int) -> int:
        """Cells of the lattice, one per row."""
        return n

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """n times the variance of the lattice's mean over its offset is left."""
        left = n * h.offsets.T @ h.offsets / len(h.offsets)
        return left, h.variance - left

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        offset, order = key.several((Stream.RATE, Stream.PERMUTATION), n, device)
        points = (offset[:1] + torch.arange(n, dtype=torch.float64, device=device) / n) % 1.0
        return points[order.argsort(stable=True)].clamp(2.0**-53, 1 - 2.0**-53)


Source = IID | Stratified | LowDiscrepancy
