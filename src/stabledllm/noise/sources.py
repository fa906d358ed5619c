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
class IID:
    """Independent uniforms, one per row."""

    name = "iid"

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

    def __post_init__(self) -> None:
        if self.strata is not None and self.strata < 1:
            raise UserError(f"strats: expected at least 1 stratum, found strata={self.strata}.")

    def count(self, n: int) -> int:
        """Number of strata for a step of n rows."""
        return self.strata or math.ceil(math.sqrt(n))

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

    def uniforms(self, key: Key, n: int, device: torch.device) -> Tensor:
        offset, order = key.several((Stream.RATE, Stream.PERMUTATION), n, device)
        points = (offset[:1] + torch.arange(n, dtype=torch.float64, device=device) / n) % 1.0
        return points[order.argsort(stable=True)].clamp(2.0**-53, 1 - 2.0**-53)


Source = IID | Stratified | LowDiscrepancy
