"""What rows with small t do to a step's variance, known from counts where drawn steps hardly ever see it.

Independent masks hide a token of a row of P tokens with a chance of about P t, and the loss is then about 1 / (P t):
below some t0 a few draws would decide the variance of thousands. Given their rates, rows below t0 are independent, so

    n Var(step) = n Var(step with the losses of those rows replaced by their mean given t) + ∫_{t<t0} Var(l | t) w² p dt

for every source of t. The first is measured on drawn steps, the second on the nested design, whose masks hide something
by construction.

Legend: a rows, b cells, n rows of a step, K views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import p_mask
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive
from stabledllm.stats.jackknife import LEAST_ROWS, spread
from stabledllm.stats.shares import token_mean
from stabledllm.variance.components import UNIT, NestedLosses, cell_moments, parts_of

_KURTOSIS = 1.0
"""What rates just above t0 may add to the fourth moment, over the square of the variance: a normal law has 3 in all."""
_LEAST_SPREAD = 0.05
"""Least variance over the squared mean that is believed of a few rows."""
_HIGHEST = 0.3
"""Upper bound of t0: how two views go together is known for few masked tokens only."""


@dataclass(frozen=True)
class LowRates:
    """Standard's losses below t0, from its nested design."""

    nested: NestedLosses
    eps: float
    cells: int
    """How many of the nested design's cells lie below t0."""

    @classmethod
    def of(cls, nested: NestedLosses, size: Tensor, eps: float) -> LowRates | None:
        """None where nothing needs it: responses so long, or eps so large, that drawn steps see every rate.

        Args:
            size: P of the nested design's rows, shape (a,).
        """
        if nested.width is None or nested.chance is None:
            return None
        share = torch.ones(len(size), dtype=torch.float64) if nested.share is None else nested.share
        # ∫_{t>t0} of P t, the chance that one token is hidden, times (m / (P t))^4 is m^4 / (2 P^3 t0^2).
        mean = float(token_mean(cell_moments(nested.losses, nested.chance)[0] @ nested.weight, nested.share))
        spread = max(float(sum(parts_of(nested))) / mean**2, _LEAST_SPREAD)
        wanted = float((share**4 / size.double() ** 3).mean() / (2 * _KURTOSIS)) ** 0.5 / spread
        if wanted <= eps:
            return None
        edges = nested.width.cumsum(0)
        cells = 1 + int(torch.searchsorted(edges, min(wanted, _HIGHEST)))
        return cls(nested, eps, cells if float(edges[cells - 1]) <= _HIGHEST + 1e-9 else max(1, cells - 1))

    @property
    def edge(self) -> float:
        """t0."""
        return float(self.nested.width[: self.cells].sum())

    @property
    def g(self) -> Tensor:
        """Mean loss over rows in each cell, shape (b',)."""
        return cell_moments(self.nested.losses, self.nested.chance)[0][:, : self.cells].mean(0)

    def mean_at(self, t: Tensor, weight: Tensor) -> Tensor:
        """Mean weighted loss over rows at rates below t0, shape of t."""
        edges = self.nested.width[: self.cells].cumsum(0)
        return self.g[torch.searchsorted(edges, t).clamp(max=self.cells - 1)] * weight

    def mean_error(self, sampler: TSampler) -> float:
        """Standard error that replacing rows by :meth:`mean_at` gives the mean loss."""
        cell, _, width, density, weight = self._cells(sampler)
        each = (cell * weight * density) @ width
        return float(each.std()) / len(each) ** 0.5

    def noise(self, method: Method, sampler: TSampler) -> Estimate:
        """``∫_{t<t0} Var(l | t) w² p dt`` of a method's row loss, jackknife over rows.

        Views averaged have ``g² + v (1 + (K - 1) rho) / K``, rho that of a token's being masked in two of them, which
        is exact where a token's cross-entropy does not depend on the few others that are masked.
        """
        cell, t, width, density, weight = self._cells(sampler)
        _, v, error = (x[:, : self.cells] for x in cell_moments(self.nested.losses, self.nested.chance))
        second = weight**2 * (cell**2 - error + v * view_factor(method, t, self.eps))

        mean, share = weight * cell, self.nested.share
        if share is not None:  # of s w l - s m in the place of w l; m is known well enough to be taken as it is
            m = float(token_mean(self._row_means(), share))
            second = second - 2 * m * share[:, None] * mean + m**2 * share[:, None] ** 2
            mean = mean - m * share[:, None]
        found = _mean_less_square((second * density) @ width, mean, density @ torch.diag(width))
        return replace(found, ends=of_positive(found.value, found.stderr, len(cell) - 1))

    def _row_means(self) -> Tensor:
        return cell_moments(self.nested.losses, self.nested.chance)[0] @ self.nested.weight

    def _cells(self, sampler: TSampler) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of the low cells: g and t (a, b'), widths (b',), density and weight of t (a, b')."""
        cell = cell_moments(self.nested.losses, self.nested.chance)[0][:, : self.cells]
        t, width = self.nested.t[:, : self.cells], self.nested.width[: self.cells]
        return cell, t, width, sampler.log_prob(t).exp(), sampler.weight(t)


def _mean_less_square(second: Tensor, mean: Tensor, weight: Tensor) -> Estimate:
    """Mean of ``second`` (a,) less the weighted squares of the mean of ``mean`` (a, b), by pairs; jackknife over rows.

    Args:
        weight: shape (a, b), averaged over rows too.
    """
    n = len(second)

    def statistic(n: int, second: Tensor, total: Tensor, squares: Tensor, weight: Tensor) -> Tensor:
        return second / n - ((total**2 - squares) / (n * (n - 1)) * weight / n).sum(-1)

    sums = [x.sum(0) for x in (second, mean, mean**2, weight)]
    left_out = statistic(n - 1, *(s - x for s, x in zip(sums, (second, mean, mean**2, weight), strict=True)))
    error = spread(left_out) if n >= LEAST_ROWS else float("nan")
    return Estimate(value=float(statistic(n, *sums)), stderr=error, n=n, unit=UNIT)


def is_known_at_low_rates(method: Method) -> bool:
    """Whether :class:`LowRates` speaks for a method: its masks are those of Standard in every view."""
    return method.masker == Bernoulli() and not method.syrm


def view_factor(method: Method, t: Tensor, eps: float) -> Tensor:
    """``(1 + (K - 1) rho) / K``: Var_M of the views' mean over that of one; shape of t."""
    views = method.views.active(t.flatten()).sum(1).view_as(t).double()
    if method.views.independent:
        return 1.0 / views
    p = p_mask(t, eps)
    fewer = (p * views).floor().clamp(max=views - 1)
    more = p * views - fewer
    # As many views as possible hide other tokens: a token is hidden in `fewer` of them or in one more.
    both = (fewer * (fewer - 1) * (1 - more) + (fewer + 1) * fewer * more) / (views * (views - 1)).clamp(min=1)
    rho = ((both - p**2) / (p * (1 - p)).clamp(min=1e-300)).nan_to_num()
    return torch.where(views > 1, (1 + (views - 1) * rho) / views, torch.ones_like(t))
