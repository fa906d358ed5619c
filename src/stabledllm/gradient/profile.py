"""Gradients of chosen rows at random rates within cells of t, from which all figures of the gradient follow.

Legend: a rows, b cells, n points of a row, k places of a sketch, Q blocks of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.forward.meter import Meter
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.sketch import GradientMeter, Sketch, block_products
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import largest_ratio
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import rate_edges

_STEP = 0x64AD0


@dataclass(frozen=True)
class GradientProfile:
    """Inner products of row gradients at unit importance weight; nothing is clamped or dropped.

    Under a window or bell every t is the place in it, from 0 to 1, as in all of the library (``Objective.ratio``).

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> profile.of_counts, profile.point_width.sum().round(decimals=6)
    (True, tensor(1., dtype=torch.float64))
    """

    method: Method
    edges: Tensor
    """Edges of the cells of t, shape (b + 1,)."""
    cell: Tensor
    """Cell of each point of a row, int64, shape (n,)."""
    t: Tensor
    """Rate of each point, uniform in its cell, float64, shape (a, n)."""
    gram: Tensor
    """Inner products of a row's points, float64, shape (Q, a, n, n); Q is 1 for exact gradients, else the number of
    blocks of a projection, each unbiased by itself."""
    sketch: Tensor
    """Projections of the points, shape (a, n, k), always of BLOCKS blocks."""
    lone: Tensor | None
    """Each point's squared norm without the products of its views, float64, shape (a, n); None where not measured."""
    mean_square: Tensor
    """Squared norm of the sum of the mean gradients h_i of the first 1, 2, ..., a rows, by block, float64, (Q, a)."""
    losses: Tensor
    """Losses in nats, shape (a, n)."""
    size: Tensor
    """Maskable tokens P of each row, shape (a,)."""
    rows: Tensor
    """Index of each row in the data, shape (a,)."""
    objective: Objective
    forwards: int
    """Number of rows that went forward and backward for it."""
    share: Tensor | None = None
    """Share of each row in the token mean, already a factor of its gradients, shape (a,); None where all rows count the
    same."""
    masks_per_rate: int = 1
    """Points that follow each other and have one t (``gradient/paired.py``)."""

    @property
    def of_counts(self) -> bool:
        """Whether its masks are single fixed counts, from which figures under Bernoulli masks follow too."""
        return self.method.name == "fixedcount"

    @property
    def width(self) -> Tensor:
        """Width of each cell, shape (b,)."""
        return self.edges.diff()

    @property
    def point_width(self) -> Tensor:
        """Share of [0, 1] that each point of a row stands for, shape (n,)."""
        return (self.width / self.cell.bincount())[self.cell]

    @property
    def pair_weight(self) -> Tensor:
        """Weights (n, n) of the products of two points by which a product of two means over t is unbiased.

        A point is never paired with itself, or with another of the same t: the pairs of different t of its cell count
        for more instead.
        """
        plain = torch.outer(self.point_width, self.point_width)
        count, own = self.cell.bincount()[self.cell].double(), self.masks_per_rate
        same = self.cell[:, None] == self.cell
        weight = torch.where(same, plain * (count / (count - own)), plain)
        return weight.masked_fill(self.same_rate, 0.0)

    @property
    def same_rate(self) -> Tensor:
        """Whether two points of a row are at one t, bool, shape (n, n)."""
        rate = torch.arange(len(self.cell)) // self.masks_per_rate
        return rate[:, None] == rate

    def first(self, rows: int) -> GradientProfile:
        """The profile of the first rows only."""
        return replace(
            self,
            t=self.t[:rows],
            gram=self.gram[:, :rows],
            sketch=self.sketch[:rows],
            lone=None if self.lone is None else self.lone[:rows],
            mean_square=self.mean_square[:, :rows],
            losses=self.losses[:rows],
            size=self.size[:rows],
            rows=self.rows[:rows],
            share=None if self.share is None else self.share[:rows],
        )

    def squares(self) -> Tensor:
        """Squared norm of every point, by block, shape (Q, a, n)."""
        return self.gram.diagonal(dim1=-2, dim2=-1)


def gradient_profile(
    meter: GradientMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int
) -> GradientProfile:
    """Measure gradients of ``rows`` distinct rows, at least ``masks`` a row in each cell of t, at rates of their own.

    Rows are the same for every method of a seed. With counts the lowest cell ends where a single token is masked;
    otherwise cells get finer down to where p_mask is near its least value (``rate_edges``).

    >>> from stabledllm.gradient.example import example_meter
    >>> profile = gradient_profile(example_meter(), Method.parse("mirror"), rows=2, rates=2, masks=2, seed=0)
    >>> profile.squares().shape == (1, 2, len(profile.cell))
    True
    """
    points = points_of(meter, method, rows=rows, rates=rates, masks=masks, seed=seed)
    return profile_at(meter, method, *points)


def profile_at(
    meter: GradientMeter, method: Method, key: Key, chosen: Tensor, size: Tensor, edges: Tensor, cell: Tensor, t: Tensor
) -> GradientProfile:
    """Measure gradients at given points, which are the values of :func:`points_of`.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, counts = example_meter(), Method.parse("fixedcount")
    >>> points = points_of(meter, counts, rows=2, rates=2, masks=2, seed=0)
    >>> profile_at(meter, counts, *points).rows.shape
    torch.Size([2])
    """
    a, n = t.shape[:2]
    exact = isinstance(meter, RowGradients)
    sketch = Sketch({name: p.numel() for name, p in meter.parameters.items()}) if exact else None
    weight = (edges.diff() / cell.bincount())[cell]
    grams, sketches, squares, lones, total = [], [], [], [], None
    losses, before = torch.zeros(a, n, dtype=torch.float64), meter.forwards
    for i, row in enumerate(chosen.tolist()):
        gradients, lone = None, torch.zeros(n, dtype=torch.float64)
        for batch in meter.gradients(torch.full((n,), row), t[i], method, key, start=i * n):
            if gradients is None:
                gradients = batch.gradients.new_empty(n, batch.gradients.shape[1])
            gradients[batch.index.to(gradients.device)] = batch.gradients
            losses[i, batch.index] = batch.losses
            if batch.view_squares is None:
                lone = None
            else:
                lone[batch.index] = batch.view_squares.double()
        lones.append(lone)
        h = weight.to(gradients) @ gradients
        total = h if total is None else total + h
        grams.append(gram_of(gradients, exact))
        squares.append(gram_of(total[None], exact).flatten())
        sketches.append((sketch.of(gradients) if exact else gradients).cpu())
    return GradientProfile(
        method=method,
        edges=edges,
        cell=cell,
        t=t,
        gram=torch.stack(grams, dim=1),
        sketch=torch.stack(sketches),
        lone=None if lones[0] is None else torch.stack(lones),
        mean_square=torch.stack(squares, dim=1),
        losses=losses,
        size=size,
        rows=chosen,
        objective=meter.objective,
        forwards=meter.forwards - before,
        share=meter.shares(method)[chosen] if meter.objective.normalization != "row" else None,
    )


def points_of(
    meter: Meter, method: Method, *, rows: int, rates: int, masks: int, seed: int
) -> tuple[Key, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The points to measure: key of the draws, rows (a,), P of rows (a,), edges (b + 1,), cells (n,) and t (a, n).

    >>> from stabledllm.gradient.example import example_meter
    >>> key, chosen, size, edges, cell, t = points_of(example_meter(), Method(), rows=4, rates=4, masks=2, seed=0)
    >>> ((edges[cell] <= t) & (t <= edges[cell + 1])).all()
    tensor(True)
    """
    key = Key(seed, _STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    size = torch.tensor([meter.rows[i].maskable_count(syrm=method.syrm) for i in chosen.tolist()])
    counted, objective = method.masker.counted, meter.objective
    least = max(objective.floor, _only_one(size.median(), objective)) if counted else objective.floor
    edges = rate_edges(rates, least)
    if counted:  # below 1 / P, or what takes its place, every count is 1
        edges = _from_first_step(edges, _only_one(size.max(), objective))
    cell = torch.arange(len(edges) - 1).repeat_interleave(masks_per_cell(edges, masks, objective))
    a, n = len(chosen), len(cell)
    u = key.row_uniforms(Stream.RATE, torch.arange(a * n)).view(a, n)
    t = edges[cell] + u * edges.diff()[cell]
    return key, chosen, size, edges, cell, t


def _from_first_step(edges: Tensor, step: float) -> Tensor:
    """Edges whose lowest cell is that of count 1, which ends at ``step``; next to none of t is below a narrow window's.

    >>> _from_first_step(torch.tensor([0.0, 0.25, 0.5, 1.0]), 0.2)
    tensor([0.0000, 0.2000, 0.5000, 1.0000])
    >>> _from_first_step(torch.tensor([0.0, 0.5, 1.0]), 1e-9)
    tensor([0.0000, 0.5000, 1.0000])
    """
    inner = edges[1:-1]
    first = edges.new_tensor([step] if 0.25 * float(edges[1]) <= step < 1 else [])
    return torch.cat((edges[:1], first, inner[inner > step * (1.5 if len(first) else 1)], edges[-1:]))


def _only_one(size: Tensor, objective: Objective) -> float:
    """The t below which exactly one of ``size`` tokens is masked."""
    return float(largest_ratio(torch.ones(1, dtype=torch.int64), size, objective.counts))


def masks_per_cell(edges: Tensor, masks: int, objective: Objective) -> Tensor:
    """Number of masks in each cell, int64, shape (b,): ``masks`` where t is large, up to three times that where small.

    The spread of the squared norm grows with the mask ratio r like r^-3/2 (a coefficient of 1/r, from few and therefore
    unlike tokens), and for a given number of points the error is least where they are in proportion to each cell's
    spread.

    >>> masks_per_cell(torch.tensor([0.0, 0.5, 1.0]), 2, Objective())
    tensor([6, 2])
    >>> masks_per_cell(torch.tensor([0.0, 0.5, 1.0]), 2, Objective(window=(0.45, 0.55)))  # nearly one ratio
    tensor([2, 2])
    """
    middle = (edges[1:] + edges[:-1]) / 2
    spread = edges.diff() / objective.ratio(middle) ** 1.5
    return (masks * (spread / spread[middle >= 0.5].mean()).round().clamp(1, 3)).long()


def gram_of(vectors: Tensor, exact: bool) -> Tensor:
    """Inner products of gradients, (1, m, m), or of their projections by block, (Q, m, m); float64.

    >>> gram_of(torch.eye(2), exact=True).shape
    torch.Size([1, 2, 2])
    """
    return ((vectors @ vectors.T).double()[None] if exact else block_products(vectors, vectors)).cpu()
