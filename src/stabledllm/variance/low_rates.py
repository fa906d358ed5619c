"""The part of a step's variance that comes from rows with small t, which drawn steps hardly ever show.

Independent masks hide a token of a row of P tokens with a chance of about P t, and the loss is then about 1 / (P t):
below some t0 a few draws would decide the variance of thousands. Given their rates, rows below t0 are independent, so
that for every source of t

    n Var(step) = n Var(step with the losses of those rows replaced by their mean given t) + ∫_{t<t0} Var(l | t) w² p dt

The first part is measured on drawn steps, the second on the nested design, whose masks hide a token by construction.

Legend: a rows, b cells, n rows of a step, K views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive
from stabledllm.stats.jackknife import LEAST_ROWS, spread
from stabledllm.stats.shares import token_mean
from stabledllm.variance.components import UNIT, NestedLosses, components

_KURTOSIS = 1.0
"""Most that rates just above t0 may add to the fourth moment over the squared variance, 3 in all for a normal law."""
_LEAST_SPREAD = 0.05
"""Least variance over the squared mean that is assumed, since a few rows may show too little."""
_HIGHEST = 0.3
"""Upper bound of t0: the correlation of two views is known only where few tokens are masked."""


@dataclass(frozen=True)
class LowRates:
    """Standard's losses at rates below t0, from its nested design.

    >>> nested = NestedLosses(torch.ones(4, 2, 2), torch.arange(4), width=torch.tensor([0.25, 0.75]))
    >>> LowRates(nested, Objective(), cells=1).edge
    0.25
    """

    nested: NestedLosses
    objective: Objective
    cells: int
    """Number of the nested design's cells below t0."""

    @classmethod
    def of(cls, nested: NestedLosses, size: Tensor, objective: Objective) -> LowRates | None:
        """The low rates of a nested design; None where drawn steps suffice, responses being long or p_mask never small.

        Args:
            size: P of the nested design's rows, shape (a,).
        """
        if nested.width is None or nested.chance is None:
            return None
        share = torch.ones(len(size), dtype=torch.float64) if nested.share is None else nested.share
        # ∫_{t>t0} of P t, the chance that one token is hidden, times (m / (P t))^4 is m^4 / (2 P^3 t0^2).
        mean = float(token_mean(nested.row_means, nested.share))
        spread = max(float(sum(components(nested))) / mean**2, _LEAST_SPREAD)
        t0 = float((share**4 / size.double() ** 3).mean() / (2 * _KURTOSIS)) ** 0.5 / spread
        if t0 <= objective.floor:
            return None
        edges = nested.width.cumsum(0)
        cells = 1 + int(torch.searchsorted(edges, min(t0, _HIGHEST)))
        return cls(nested, objective, cells if float(edges[cells - 1]) <= _HIGHEST + 1e-9 else max(1, cells - 1))

    @property
    def edge(self) -> float:
        """The rate t0."""
        return float(self.nested.width[: self.cells].sum())

    def mean_at(self, t: Tensor, weight: Tensor) -> Tensor:
        """Mean weighted loss over rows at rates below t0, shape of t."""
        edges = self.nested.width[: self.cells].cumsum(0)
        g = self.nested.cell_moments[0][:, : self.cells].mean(0)
        return g[torch.searchsorted(edges, t).clamp(max=self.cells - 1)] * weight

    def mean_error(self, sampler: TSampler) -> float:
        """Standard error of the mean loss that comes from replacing rows by :meth:`mean_at`."""
        g, _, width, density, weight = self._cells(sampler)
        each = (g * weight * density) @ width
        return float(each.std()) / len(each) ** 0.5

    def noise(self, method: Method, sampler: TSampler) -> Estimate:
        """``∫_{t<t0} Var(l | t) w² p dt`` of a method's row loss, jackknife over rows.

        The mean of K views has the second moment ``g² + v (1 + (K - 1) rho) / K``, rho the correlation of one token's
        being masked in two views; that is exact where a token's cross-entropy does not depend on the few others masked.
        """
        g, t, width, density, weight = self._cells(sampler)
        _, v, error = (x[:, : self.cells] for x in self.nested.cell_moments)
        second = weight**2 * (g**2 - error + v * view_factor(method, t, self.objective.p_mask(t)))

        mean, share = weight * g, self.nested.share
        if share is not None:  # the variance of s w l - s m in the place of w l, with m taken as exact
            m = float(token_mean(self.nested.row_means, share))
            second = second - 2 * m * share[:, None] * mean + m**2 * share[:, None] ** 2
            mean = mean - m * share[:, None]
        variance = _mean_less_square((second * density) @ width, mean, density @ torch.diag(width))
        return replace(variance, ends=of_positive(variance.value, variance.stderr, len(g) - 1))

    def _cells(self, sampler: TSampler) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The low cells' g and t (a, b'), widths (b',), and density and weight of t (a, b')."""
        g, t = (x[:, : self.cells] for x in (self.nested.cell_moments[0], self.nested.t))
        return g, t, self.nested.width[: self.cells], sampler.log_prob(t).exp(), sampler.weight(t)


def _mean_less_square(second: Tensor, mean: Tensor, weight: Tensor) -> Estimate:
    """The mean of ``second`` (a,) over rows, less the weighted sum of the squares of the means of ``mean`` (a, b).

    Squares are from pairs of different rows, errors by the jackknife over rows.

    Args:
        weight: of the squares, shape (a, b); its mean over rows is used.
    """
    n = len(second)

    def statistic(n: int, second: Tensor, total: Tensor, squares: Tensor, weight: Tensor) -> Tensor:
        return second / n - ((total**2 - squares) / (n * (n - 1)) * weight / n).sum(-1)

    sums = [x.sum(0) for x in (second, mean, mean**2, weight)]
    left_out = statistic(n - 1, *(s - x for s, x in zip(sums, (second, mean, mean**2, weight), strict=True)))
    error = spread(left_out) if n >= LEAST_ROWS else float("nan")
    return Estimate(value=float(statistic(n, *sums)), stderr=error, n=n, unit=UNIT)


def is_known_at_low_rates(method: Method) -> bool:
    """Whether :class:`LowRates` holds for a method: every view has the masks of Standard, and none are chosen.

    >>> is_known_at_low_rates(Method.parse("mirror")), is_known_at_low_rates(Method.parse("fixedcount"))
    (True, False)
    """
    return method.masker == Bernoulli() and not method.syrm and method.objective.tokens in ("all", "cart")


def view_factor(method: Method, t: Tensor, p: Tensor) -> Tensor:
    """``(1 + (K - 1) rho) / K``: Var_M of the mean of the views over that of one view, p being p_mask(t); shape of t.

    >>> view_factor(Method.parse("multisample2"), t := torch.tensor([0.1, 0.9]), p=t)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    views = method.views.active(t.flatten()).sum(1).view_as(t).double()
    if method.views.independent:
        return 1.0 / views
    fewer = (p * views).floor().clamp(max=views - 1)
    more = p * views - fewer
    # Views mask different tokens as far as possible: each token is masked in `fewer` of them or in one more.
    both = (fewer * (fewer - 1) * (1 - more) + (fewer + 1) * fewer * more) / (views * (views - 1)).clamp(min=1)
    rho = ((both - p**2) / (p * (1 - p)).clamp(min=1e-300)).nan_to_num()
    return torch.where(views > 1, (1 + (views - 1) * rho) / views, torch.ones_like(t))
