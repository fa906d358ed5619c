"""Gradients of chosen rows at random rates within cells of t: what every gradient figure is worked out from.

Legend: a rows, b cells, c masks per cell, n = b c points of a row, k places of a sketch, Q blocks of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.gradients.per_row import RowGradients
from stabledllm.gradients.sketch import GradientMeter, Sketch
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import rate_edges

_STEP = 0x64AD0
BLOCKS = 16
"""Blocks of a projection's coordinates, each unbiased by itself: their spread is the projection's error."""


@dataclass(frozen=True)
class GradientProfile:
    """Inner products of gradients at unit importance weight. Nothing is clamped or dropped."""

    method: Method
    edges: Tensor
    """Edges of the cells of t, shape (b + 1,)."""
    t: Tensor
    """Rate of each point, uniform in its cell, float64, shape (a, b, c)."""
    gram: Tensor
    """Inner products of a row's points, float64, shape (Q, a, n, n); their sum over Q is unbiased."""
    sketch: Tensor
    """Sketches of the points, shape (a, n, k)."""
    mean_square: Tensor
    """Squared norm of the sum over rows of the mean gradients h_i, by block, float64, shape (Q,)."""
    losses: Tensor
    """Losses in nats, shape (a, b, c)."""
    size: Tensor
    """Maskable tokens P of each row, shape (a,)."""
    rows: Tensor
    """Index of each row in the data, shape (a,)."""
    eps: float
    power: float
    forwards: int
    """Forward-backward rows that it took."""

    @property
    def width(self) -> Tensor:
        return self.edges.diff()

    @property
    def point_width(self) -> Tensor:
        """Share of [0, 1] that each point of a row stands for, shape (n,)."""
        c = self.t.shape[-1]
        return (self.width / c).repeat_interleave(c)

    @property
    def pair_weight(self) -> Tensor:
        """Weights of products of two points, (n, n), that estimate a product of two means over t without bias.

        A point is never paired with itself: within a cell the c (c - 1) ordered pairs of different masks stand in.
        """
        b, c = self.t.shape[1:]
        plain = torch.outer(self.point_width, self.point_width)
        same = torch.block_diag(*[torch.ones(c, c, dtype=torch.float64)] * b)
        lone = plain * (1 + same / (c - 1))
        return lone - torch.diag(lone.diagonal())

    def squares(self) -> Tensor:
        """Squared norm of every point, by block, shape (Q, a, n)."""
        return self.gram.diagonal(dim1=-2, dim2=-1)


def gradient_profile(
    meter: GradientMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int
) -> GradientProfile:
    """Gradients of ``rows`` distinct rows, ``masks`` in each cell of t, each at a rate of its own in the cell.

    Rows are the same for every method of a seed. For counts the lowest cells end where a single token is masked;
    otherwise where p_mask is near its least value (``rate_edges``).
    """
    key = Key(seed, _STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    size = torch.tensor([_maskable(meter.rows[i], method) for i in chosen.tolist()])
    counted = method.masker.name in ("fixedcount", "complement")
    least = max(meter.objective.eps, 1.0 / float(size.double().median())) if counted else meter.objective.eps
    edges = rate_edges(rates, least)
    a, b, c = len(chosen), len(edges) - 1, masks
    u = key.row_uniforms(Stream.RATE, torch.arange(a * b * c)).view(a, b, c)
    t = edges[:-1, None] + u * edges.diff()[:, None]
    exact = isinstance(meter, RowGradients)
    sketch = Sketch({name: p.numel() for name, p in meter.parameters.items()}) if exact else None
    weight = (edges.diff() / c).repeat_interleave(c).float()
    grams, sketches, losses, total, before = [], [], torch.zeros(a, b * c, dtype=torch.float64), None, meter.forwards
    for i, row in enumerate(chosen.tolist()):
        gradients = None
        where = torch.full((b * c,), row)
        for index, loss, found in meter.gradients(where, t[i].flatten(), method, key, start=i * b * c):
            if gradients is None:
                gradients = found.new_empty(b * c, found.shape[1])
            gradients[index.to(found.device)] = found
            losses[i, index] = loss
        h = weight.to(gradients) @ gradients
        total = h if total is None else total + h
        grams.append(_gram(gradients, 1 if exact else BLOCKS))
        sketches.append((sketch.of(gradients) if exact else gradients).cpu())
    return GradientProfile(
        method=method,
        edges=edges,
        t=t,
        gram=torch.stack(grams, dim=1),
        sketch=torch.stack(sketches),
        mean_square=_gram(total[None], 1 if exact else BLOCKS).flatten(),
        losses=losses.view(a, b, c),
        size=size,
        rows=chosen,
        eps=meter.objective.eps,
        power=meter.objective.power,
        forwards=meter.forwards - before,
    )


def _maskable(row, method: Method) -> int:
    return row.response_length + (len(row.syntax) if method.syrm else 0)


def _gram(vectors: Tensor, blocks: int) -> Tensor:
    """Inner products by block of coordinates, float64, shape (blocks, m, m)."""
    parts = vectors.tensor_split(blocks, dim=1)
    return torch.stack([(part @ part.T).double().cpu() for part in parts])
