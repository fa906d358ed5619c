"""Sources: where the uniforms u behind the mask ratios of one optimizer step come from.

The n points of a source always span the whole step (ranks x accumulation x rows). Every source gives each row a
marginally uniform u; sources differ only in the joint law of the rows.
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
    """Moments of a vector-valued function h of u over the cells that a source spreads its points over.

    Legend: b entries of h.

    For h(u) = u in cells of two places, tabulated at 1/8, 3/8, 5/8 and 7/8:

    >>> halves, quarters = torch.tensor([[-0.25], [0.25]]), torch.tensor([[-0.125], [0.125]])
    >>> h = OverU(torch.tensor([[0.078125]]), cells=halves, offsets=quarters)
    >>> LowDiscrepancy().left_of(h, n=2)  # the noise of a step's mean that a lattice of two points leaves and removes
    (tensor([[0.0312]]), tensor([[0.0469]]))
    """

    variance: Tensor
    """Cov_u h, shape (b, b)."""
    cells: Tensor
    """Mean of h in each cell minus the overall mean, shape (cells, b)."""
    offsets: Tensor
    """Mean of h over the cells, at each place within a cell, minus the overall mean, shape (places, b)."""


@dataclass(frozen=True)
class IID:
    """Independent uniforms, one per row.

    >>> IID().uniforms(Key(0, 0), 4, torch.device("cpu")).shape
    torch.Size([4])
    """

    name = "iid"
    independent = True
    """Whether the rows of a step are independent."""

    def count(self, n: int) -> int:
        """The number of cells of equal width that the points of a step of n rows are spread over."""
        return n

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """``(left, removed)``: the part of Cov_u h that is left in n Cov(step mean of h), and the rest; each (b, b)."""
        return h.variance, torch.zeros_like(h.variance)

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        """The u of all n rows of the step, float64, shape (n,)."""
        return key.row_uniforms(Stream.RATE, torch.arange(n, device=device))


@dataclass(frozen=True)
class Stratified:
    """StraTS: floor(n / k) points in each of k strata, the rest in distinct random strata, dealt to the rows at random.

    The random order makes each row's u uniform; dealing strata round-robin would not (arXiv:2511.18159,
    StraTS; k defaults to ceil(sqrt(n))).

    Raises:
        UserError: for fewer than one stratum.

    >>> u = Stratified(strata=2).uniforms(Key(0, 0), 6, torch.device("cpu"))
    >>> int((u < 0.5).sum())
    3
    """

    strata: int | None = None
    name = "strats"
    independent = False

    def __post_init__(self) -> None:
        if self.strata is not None and self.strata < 1:
            raise UserError(f"strats: expected at least 1 stratum, found strata={self.strata}.")

    def count(self, n: int) -> int:
        """The number of strata for a step of n rows."""
        return self.strata or math.ceil(math.sqrt(n))

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """Left are the variance within strata and that of the n mod k extra points, a simple sample of strata."""
        k = len(h.cells)
        extra, squares = n % k, h.cells.T @ h.cells
        among_extra = extra * (1 - extra / k) * squares / (k - 1) / n if extra else 0.0
        removed = squares / k - among_extra
        return h.variance - removed, removed

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        k = self.count(n)
        within, order, drawn = key.several((Stream.RATE, Stream.PERMUTATION, Stream.STRATUM), max(n, k), device)
        every = torch.arange(k, device=device).repeat(n // k)
        extra = drawn[:k].argsort(stable=True)[: n % k]
        stratum = torch.cat((every, extra))[order[:n].argsort(stable=True)]
        return ((stratum + within[:n]) / k).clamp(max=1 - 2.0**-53)


@dataclass(frozen=True)
class LowDiscrepancy:
    """The randomly shifted lattice (u0 + i / n) mod 1 (VDM, arXiv:2107.00630), dealt to the rows at random.

    >>> u = LowDiscrepancy().uniforms(Key(0, 0), 4, torch.device("cpu"))
    >>> u.sort().values.diff()
    tensor([0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    name = "lowdisc"
    independent = False

    def count(self, n: int) -> int:
        """The number of cells of the lattice, one per row."""
        return n

    def left_of(self, h: OverU, n: int) -> tuple[Tensor, Tensor]:
        """Left is n times the covariance of the lattice's mean over its random offset."""
        left = n * h.offsets.T @ h.offsets / len(h.offsets)
        return left, h.variance - left

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        offset, order = key.several((Stream.RATE, Stream.PERMUTATION), n, device)
        points = (offset[:1] + torch.arange(n, dtype=torch.float64, device=device) / n) % 1.0
        return points[order.argsort(stable=True)].clamp(2.0**-53, 1 - 2.0**-53)


Source = IID | Stratified | LowDiscrepancy
