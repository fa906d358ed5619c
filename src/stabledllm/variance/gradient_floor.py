"""The least gradient noise that any density of t can reach with one exactly counted view a row.

With squared norms s_i(t) at unit weight, a density p costs ``E_i ∫ s_i / p dt``, which by Cauchy-Schwarz is at least
``(∫ sqrt(E_i s_i) dt)²``; ``E_i (∫ sqrt(s_i) dt)²`` if every row had a density of its own; and with low discrepancy,
which removes the mean gradient's square at each t, ``(∫ sqrt(E_i s_i - |E_i g_i|²) dt)²`` (DESIGN section 3).

Legend: a rows, b cells, n points of a row, k places of a sketch, Q blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.jackknife import jackknife
from stabledllm.noise.t_samplers import Uniform
from stabledllm.variance.gradient_noise import PairMean, bernoulli_moments, row_mean_square
from stabledllm.variance.gradient_profile import GradientProfile


@dataclass(frozen=True)
class GradientFloor:
    """Least noise at equal compute over Standard's, for densities that are constant within the profile's cells."""

    shared: Estimate
    """One density for all rows, iid: what P-POTS on the gradient with fixed counts aims at."""
    lowdisc: Estimate
    """One density for all rows, with low discrepancy over a long step."""
    own: Estimate
    """A density for every row, known beforehand, iid: no method here has that. Somewhat low, since the root of a
    noisy squared norm is low on average."""

    def as_dict(self) -> dict:
        """JSON form."""
        return {name: getattr(self, name).as_dict() for name in asdict(self)}


def gradient_floor(profile: GradientProfile) -> GradientFloor:
    """The floors of single views, from a profile of fixed counts, with jackknife errors over rows.

    Raises:
        ValueError: a profile of another masker or of several views.
    """
    standard = bernoulli_moments(profile, Uniform(), 1).second.sum(0)
    own_square = row_mean_square(profile).sum(0)
    cells = torch.nn.functional.one_hot(profile.cell).double() / profile.cell.bincount()
    square, width = profile.squares().sum(0) @ cells, profile.width
    mean_of_cells, mean_of_rows = _MeanOfRows(profile, cells), PairMean(profile)

    def noise_of_standard(keep: Tensor) -> Tensor:
        return (standard - own_square)[keep].mean()

    def shared(keep: Tensor) -> float:
        root = square[keep].mean(0).sqrt() @ width
        return float((root**2 - own_square[keep].mean()) / noise_of_standard(keep))

    def lowdisc(keep: Tensor) -> float:
        root = (square[keep].mean(0) - mean_of_cells(keep)).clamp(min=0).sqrt() @ width
        data = own_square[keep].mean() - mean_of_rows(keep).sum()
        return float((root**2 - data) / noise_of_standard(keep))

    def own(keep: Tensor) -> float:
        root = square[keep].sqrt() @ width
        return float(((root**2).mean() - own_square[keep].mean()) / noise_of_standard(keep))

    rows = len(profile.rows)
    return GradientFloor(*(jackknife(part, rows, "of Standard's") for part in (shared, lowdisc, own)))


class _MeanOfRows:
    """|E_i g_i|² in each cell from pairs of different rows, shape (b,), for all rows or all but one."""

    def __init__(self, profile: GradientProfile, cells: Tensor):
        self.each = torch.einsum("ank,nb->abk", profile.sketch, cells.to(profile.sketch.dtype))
        self.total, self.rows = self.each.double().sum(0), len(profile.rows)
        self.squares = self.each.double().square().sum(-1)

    def __call__(self, keep: Tensor) -> Tensor:
        gone, n = sorted(set(range(self.rows)) - set(keep.tolist())), len(keep)
        total = self.total - self.each[gone].double().sum(0)
        return (total.square().sum(-1) - self.squares[keep].sum(0)) / (n * (n - 1))
