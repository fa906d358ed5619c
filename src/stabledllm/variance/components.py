"""A, B and C of the loss, from nested draws: a rows, b rates of each row, c masks at each rate.

A is the mask-pattern noise E Var_M[l], B the mask-rate noise E Var_t[g], C the data noise Var_x0[E_t g]; they add up to
Var(l), by the law of total variance. Source: arXiv:2511.18159 and docs/mathematics.md#decomposition.

There are two designs. ``iid`` draws the rates of a row iid and uniform; all three estimators are unbiased, but a single
rate near 0 can dominate A (the loss is 1/t with few masked tokens). ``cells``, the default, draws one uniform rate in
each cell of :func:`rate_edges` and weighs it by the cell's width, which tames that tail; it is unbiased for A, and
biased for B and C only by the variance of g within single cells. With ``some_masked`` independent masks are drawn given
that they hide a token (``variance/some_masked.py``): otherwise a few draws near t = 0 decide A, and its error cannot be
trusted.

Under the token mean each loss is multiplied by its row's share, and C and the total are those of the step's token mean
(``stats/shares.py``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.forward.meter import LossMeter
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import LEAST_SEEN, rate_edges
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive, of_sum, of_variance, widest, with_ends
from stabledllm.stats.jackknife import jackknives
from stabledllm.stats.shares import spread_change, token_mean
from stabledllm.variance.some_masked import SomeMasked, chance_of_some

_NESTED_STEP = 0xDEC0
UNIT = "nats²"
_MOST_OF_ONE = 0.1
"""Share of A from which a single rate is said to decide it."""


@dataclass(frozen=True)
class Decomposition:
    """The parts of Var(l), each with its standard error. Small negative estimates are reported as they are.

    >>> one = Estimate(value=1.0, stderr=0.1, n=9, unit=UNIT)
    >>> Decomposition(mask_pattern=one, mask_rate=one, data=one, total=one, mean=one).as_dict()["data"]["value"]
    1.0
    """

    mask_pattern: Estimate
    mask_rate: Estimate
    data: Estimate
    total: Estimate
    mean: Estimate

    def as_dict(self) -> dict:
        """The JSON form, as in ``decomposition.json``."""
        return {name: getattr(self, name).as_dict() for name in asdict(self)}


@dataclass(frozen=True)
class NestedLosses:
    """Losses of a nested design: rows, rates of each row, masks at each rate.

    >>> nested = NestedLosses(torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]]).double(), torch.arange(2), width=None)
    >>> nested.row_means, nested.cell_moments[1].flatten()
    (tensor([2., 5.], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """

    losses: Tensor
    """In nats, float64, shape (a, b, c)."""
    rows: Tensor
    """Index of each row in the data, shape (a,)."""
    width: Tensor | None
    """Widths of the cells of t, shape (b,); None for iid rates."""
    chance: Tensor | None = None
    """Probability that a mask hides a token, shape (a, b), where losses were drawn given that it does."""
    share: Tensor | None = None
    """Share of each row in the token mean, shape (a,); None where all rows count the same."""
    t: Tensor | None = None
    """Rates, shape (a, b)."""

    def select(self, keep: Tensor) -> NestedLosses:
        """The losses of some of the rows."""
        values = {name: getattr(self, name) for name in ("losses", "rows", "chance", "share", "t")}
        return replace(self, **{name: None if x is None else x[keep] for name, x in values.items()})

    @cached_property
    def cell_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """g, v and the variance of the estimate of g by row and rate, all unbiased, each of shape (a, b)."""
        mean, spread, c = self.losses.mean(-1), self.losses.var(-1), self.losses.shape[-1]
        if self.chance is None:
            return mean, spread, spread / c
        # g = q E[l | hidden] and E l^2 = q E[l^2 | hidden]; the square of g without that of the mean's noise.
        error = self.chance**2 * spread / c
        g = self.chance * mean
        return g, self.chance * (self.losses**2).mean(-1) - g**2 + error, error

    @property
    def row_means(self) -> Tensor:
        """Mean loss of each row over t, shape (a,)."""
        return self.cell_moments[0] @ self.weight

    @property
    def rate_noise(self) -> Tensor:
        """Unbiased Var_t g of each row, shape (a,)."""
        return rate_noise(*self.cell_moments[::2], self.width)

    @property
    def weight(self) -> Tensor:
        """Weight of each rate in a mean over t, shape (b,)."""
        b = self.losses.shape[-2]
        return torch.full((b,), 1.0 / b, dtype=torch.float64) if self.width is None else self.width


def nested_losses(
    meter: LossMeter,
    method: Method,
    *,
    rows: int,
    rates: int,
    masks: int,
    seed: int,
    design: str = "cells",
    some_masked: bool = False,
) -> NestedLosses:
    """Measure the losses of ``rows`` distinct rows under uniform t, by one of the two designs.

    Args:
        some_masked: whether independent masks of single views are drawn given that they hide a token.

    >>> from stabledllm.noise.objective import Objective
    >>> class Constant:  # a meter of five rows, whose losses are 1
    ...     rows, objective = range(5), Objective()
    ...     def losses(self, row, t, method, key):
    ...         return torch.ones(len(row))
    >>> nested_losses(Constant(), Method(), rows=3, rates=4, masks=2, seed=0, design="iid").losses.shape
    torch.Size([3, 4, 2])
    """
    key = Key(seed, _NESTED_STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a, width, chance = len(chosen), None, None
    if design == "cells":
        edges = rate_edges(rates, meter.objective.floor)
        width, rates = edges.diff(), len(edges) - 1
    u = key.row_uniforms(Stream.RATE, torch.arange(a * rates)).view(a, rates)
    t = u if width is None else edges[:-1] + u * width
    share = meter.shares(method)[chosen] if meter.objective.normalization != "row" else None
    if some_masked and method.masker == Bernoulli() and method.views.count == 1:
        chance = chance_of_some(t, meter.sizes(method)[chosen][:, None], meter.objective)
        method = replace(method, masker=SomeMasked())
    losses = meter.losses(chosen.repeat_interleave(rates * masks), t.flatten().repeat_interleave(masks), method, key)
    return NestedLosses(losses.view(a, rates, masks, *losses.shape[1:]), chosen, width, chance, share, t)


def rate_noise(g: Tensor, error: Tensor, width: Tensor | None) -> Tensor:
    """Unbiased Var_t of curves g (..., b) that are known with the variance ``error``, shape (...).

    >>> rate_noise(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]), None)
    tensor(1.5000)
    """
    if width is None:
        return g.var(-1) - error.mean(-1)
    return (g**2 - error) @ width - (g @ width) ** 2 + error @ width**2


def components(nested: NestedLosses) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C of nested losses, unbiased; nothing is clamped.

    With m, v and e the mean g, the noise v and the variance of the estimate of g by row and rate (v = s², e = s²/c),
    and S²_i the variance over the rates of row i. iid: mean v; mean_i S²_i - mean e; Var_i(m_i.) - mean_i S²_i / b.
    Cells of width w: sum w v; sum w (m² - e) - ((sum w m)² - sum w² e); Var_i(sum w m) - mean_i sum w² e.

    >>> losses = torch.tensor([1.0, 3.0]).double()[:, None, None].expand(2, 2, 2)
    >>> [float(part) for part in components(NestedLosses(losses, torch.arange(2), width=None))]
    [0.0, 0.0, 2.0]
    """
    width, means, (g, noise, error) = nested.width, nested.row_means, nested.cell_moments
    of_means = g.var(1) / g.shape[1] if width is None else error @ width**2
    data = means.var() + spread_change(means, nested.share) - of_means.mean()
    return (noise @ nested.weight).mean(), nested.rate_noise.mean(), data


def decompose(nested: NestedLosses) -> Decomposition:
    """A, B, C, their sum and the mean loss, with jackknife standard errors over rows.

    Where few draws decide (fewer than ``LEAST_SEEN`` draws of a cell have a masked token, or one rate makes up a tenth
    of A), neither A nor the total has an error. The interval of A, which cannot be negative, is Student's on the
    scale of logarithms; that of B Student's; that of C chi-square's for the rows' means, less their noise; that of the
    total the wider one of the sum's and one on the scale of logarithms. Degrees of freedom follow from the effective
    number of rows, since among rows of unlike length a few have most of A.

    >>> nested = NestedLosses(torch.tensor([1.0, 3.0]).expand(2, 2, 2).mT.double(), torch.arange(2), width=None)
    >>> decompose(nested).mask_pattern.value, decompose(nested).mask_rate.value
    (0.0, 2.0)
    """
    rows = len(nested.losses)

    def parts(keep: Tensor) -> tuple[Tensor, ...]:
        some = nested.select(keep)
        a_b_c = components(some)
        return *a_b_c, sum(a_b_c), token_mean(some.row_means, some.share)

    a, b, c, total, mean = jackknives(parts, rows, (*[UNIT] * 4, "nats/token"))
    if _few_decide(nested):
        a, total = (replace(x, stderr=math.nan) for x in (a, total))
    g, noise, _ = nested.cell_moments
    freedom = _effective_rows(noise @ nested.weight) - 1
    a = replace(a, ends=of_positive(a.value, a.stderr, freedom))
    b = replace(b, freedom=_effective_rows(g**2 @ nested.weight) - 1)
    means = nested.row_means
    noise_of_means = float(means.var()) + spread_change(means, nested.share) - c.value
    ends = of_variance(c.value + noise_of_means, c.stderr, rows - 1)
    c = replace(c, ends=tuple(end - noise_of_means for end in ends))
    sums = of_sum([with_ends(x) for x in (a, b, c)])
    total = replace(total, ends=widest(sums, of_positive(total.value, total.stderr, freedom)))
    return Decomposition(mask_pattern=a, mask_rate=b, data=c, total=total, mean=mean)


def _effective_rows(each: Tensor) -> float:
    """The number of equal rows whose sum would vary as the sum of these values, (a,), does: few where a few are large.

    At least 2, since one row has no error.
    """
    square = float((each**2).sum())
    return max(2.0, float(each.sum()) ** 2 / square) if square else float(len(each))


def _few_decide(nested: NestedLosses) -> bool:
    """Whether a few draws decide A, so that the part of those that were not drawn is unknown."""
    if nested.width is None:
        noise = nested.cell_moments[1]
        return nested.chance is not None and float(noise.max()) > _MOST_OF_ONE * float(noise.sum())
    seen, draws = (nested.losses != 0).flatten(0, -3).sum((0, 2)), nested.losses[..., 0, :].numel()
    return nested.chance is None and bool(((seen < LEAST_SEEN) & (seen < draws)).any())
