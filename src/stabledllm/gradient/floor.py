"""The least gradient noise that any density of t can reach with one exactly counted view a row.

With squared norms s_i(t) at unit weight, a density p costs ``E_i ∫ s_i / p dt``, which by Cauchy-Schwarz is at least
``(∫ sqrt(E_i s_i) dt)²``; ``E_i (∫ sqrt(s_i) dt)²`` if every row had a density of its own; and with low discrepancy,
which removes the mean gradient's square at each t, ``(∫ sqrt(E_i s_i - |E_i g_i|²) dt)²``
(docs/mathematics.md#the-best-density-of-t).

Legend: a rows, b cells, n points of a row, k places of a sketch, Q blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stabledllm.gradient.components import PairMean, row_mean_square
from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.projected import estimate
from stabledllm.gradient.row_moments import bernoulli_moments
from stabledllm.gradient.sketch import by_block
from stabledllm.noise.densities import Uniform
from stabledllm.stats.estimate import Estimate


@dataclass(frozen=True)
class GradientFloor:
    """Least noise at equal compute over Standard's, for densities that are constant within the profile's cells.

    >>> from stabledllm.gradient.example import example_profile
    >>> floor = gradient_floor(example_profile())
    >>> floor.own.value < floor.shared.value
    True
    """

    shared: Estimate
    """One density for all rows, iid: the target of P-POTS on the gradient with fixed counts."""
    lowdisc: Estimate
    """One density for all rows, with low discrepancy over a long step."""
    own: Estimate
    """A density of its own for every row, known beforehand, iid; no method here has that. The root of a noisy squared
    norm is low on average, most of which a jackknife over the masks of each cell makes up for."""

    def as_dict(self) -> dict:
        """JSON form."""
        return {name: getattr(self, name).as_dict() for name in asdict(self)}


def gradient_floor(profile: GradientProfile) -> GradientFloor:
    """The floors of single views, from a profile of fixed counts, with jackknife errors over rows.

    Raises:
        ValueError: a profile of another masker or of several views.

    >>> from stabledllm.gradient.example import example_profile
    >>> list(gradient_floor(example_profile()).as_dict())
    ['shared', 'lowdisc', 'own']
    """
    standard = bernoulli_moments(profile, Uniform(), 1).second
    own_square = row_mean_square(profile)
    cells = mean_in_cells(profile)
    points, width = profile.squares(), profile.width
    square = points @ cells
    mean_of_cells, mean_of_rows = MeanOfRows(profile, cells), PairMean(profile)

    def over_standard(parts: Callable[[Tensor], list[Tensor]], noise: Callable[..., Tensor]) -> Estimate:
        """The noise that ``noise`` computes from the parts' means over blocks, over that of Standard."""

        def every_part(keep: Tensor) -> list[Tensor]:
            return [(standard - own_square)[:, keep].mean(1), *parts(keep)]

        return estimate(every_part, len(profile.rows), "of Standard's", lambda plain, *rest: noise(*rest) / plain)

    def means(keep: Tensor) -> list[Tensor]:
        return [own_square[:, keep].mean(1), square[:, keep].mean(1)]

    def shared(own: Tensor, cell: Tensor) -> Tensor:
        return (cell.sqrt() @ width) ** 2 - own

    def means_with_lattice(keep: Tensor) -> list[Tensor]:
        data = own_square[:, keep].mean(1) - mean_of_rows(keep)
        return [data, square[:, keep].mean(1), mean_of_cells(keep)]

    def lowdisc(data: Tensor, cell: Tensor, mean: Tensor) -> Tensor:
        return ((cell - mean).clamp(min=0).sqrt() @ width) ** 2 - data

    def by_row(keep: Tensor) -> list[Tensor]:
        return [own_square[:, keep], points[:, keep]]

    def each_its_own(own: Tensor, points: Tensor) -> Tensor:
        root, error = roots_in_cells(points, profile.cell)
        return ((root @ width) ** 2 - error @ width**2 - own).mean()

    return GradientFloor(
        shared=over_standard(means, shared),
        lowdisc=over_standard(means_with_lattice, lowdisc),
        own=over_standard(by_row, each_its_own),
    )


def mean_in_cells(profile: GradientProfile) -> Tensor:
    """The weight of each point of a row in the mean over each cell of t, shape (n, b).

    >>> from stabledllm.gradient.example import example_profile
    >>> mean_in_cells(example_profile()).sum(0).round(decimals=6).unique()
    tensor([1.], dtype=torch.float64)
    """
    return torch.nn.functional.one_hot(profile.cell).double() / profile.cell.bincount()


def roots_in_cells(points: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The roots of each row's mean over each cell, and their squared errors, (a, b) each; a jackknife over points.

    Args:
        points: what is averaged, at least 0, (a, n). cell: of each point, (n,), at least two points in each.

    >>> points = torch.tensor([[1.0, 9.0, 4.0, 4.0]])
    >>> root, error = roots_in_cells(points, torch.tensor([0, 0, 1, 1]))
    >>> [[round(number, 3) for number in each[0].tolist()] for each in (root, error)]
    [[2.472, 2.0], [1.0, 0.0]]
    """
    roots, errors = [], []
    for one in range(int(cell.max()) + 1):
        own = points[:, cell == one]
        m = own.shape[1]
        left_out = ((own.sum(1, keepdim=True) - own).clamp(min=0) / (m - 1)).sqrt()
        mean = left_out.mean(1)
        roots.append(m * own.mean(1).sqrt() - (m - 1) * mean)
        errors.append((left_out - mean[:, None]).square().sum(1) * (m - 1) / m)
    return torch.stack(roots, 1), torch.stack(errors, 1)


class MeanOfRows:
    """|E_i g_i|² in each cell, for all rows or all but one, from pairs of different rows; by block, shape (Q, b).

    Args:
        cells: weight of each point in the mean over each cell, shape (n, b); :func:`mean_in_cells` makes them.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> MeanOfRows(profile, mean_in_cells(profile))(torch.arange(4)).shape[1] == len(profile.width)
    True
    """

    def __init__(self, profile: GradientProfile, cells: Tensor):
        each = torch.einsum("ank,nb->abk", profile.sketch, cells.to(profile.sketch.dtype))
        self.each = by_block(each)
        self.total, self.rows = self.each.sum(1, dtype=torch.float64), len(profile.rows)
        self.squares = self.each.square().sum(-1, dtype=torch.float64)

    def __call__(self, keep: Tensor) -> Tensor:
        left_out, n = sorted(set(range(self.rows)) - set(keep.tolist())), len(keep)
        total = self.total - self.each[:, left_out].double().sum(1)
        return (total.square().sum(-1) - self.squares[:, keep].sum(1)) / (n * (n - 1))
