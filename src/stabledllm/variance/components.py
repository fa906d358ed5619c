"""A, B and C of the loss: a rows x b rates per row x c masks per cell.

Two designs. ``iid``: rates are iid uniform per row; all three estimators are unbiased, but a single rate near 0
can dominate A (the loss is 1/t with few masked tokens). ``cells``, the default: one uniform rate in each cell of
:func:`rate_edges`, weighted by the cell's width, which tames that tail; unbiased for A, and for B and C up to
the variance of g within single cells. With ``some_masked`` independent masks are drawn given that they hide a token at
all (``variance/some_masked.py``): otherwise a few draws near t = 0 decide A, and it has no error to be trusted.

Under the token mean losses come times their row's share, and C and the total are those of the step's token mean
(``shares.py``).

A is mask-pattern noise E Var_M[l], B mask-rate noise E Var_t[g], C data noise Var_x0[E_t g]; they add up to
Var(l) (law of total variance). Source: arXiv:2511.18159 and docs/mathematics.md#decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from stabledllm.forward.meter import LossMeter
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import rate_edges
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive, of_sum, of_variance, widest, with_ends
from stabledllm.stats.jackknife import jackknife, jackknives
from stabledllm.stats.shares import shares_of, spread_change, token_mean
from stabledllm.variance.some_masked import SomeMasked, chance_of_some

_NESTED_STEP = 0xDEC0
UNIT = "nats²"
LEAST_SEEN = 10
"""Draws of a cell in which something was masked, from which they speak for it: of fewer, one decides."""
_MOST_OF_ONE = 0.1


@dataclass(frozen=True)
class Decomposition:
    """The parts of Var(l), each with its standard error. Small negative estimates are reported as they are."""

    mask_pattern: Estimate
    mask_rate: Estimate
    data: Estimate
    total: Estimate
    mean: Estimate

    def as_dict(self) -> dict:
        """The JSON form of ``decomposition.json``."""
        return {name: getattr(self, name).as_dict() for name in asdict(self)}


@dataclass(frozen=True)
class NestedLosses:
    """Losses in nats, float64, shape (a, b, c); row indices, shape (a,); cell widths, shape (b,), or None for iid."""

    losses: Tensor
    rows: Tensor
    width: Tensor | None
    chance: Tensor | None = None
    """Probability that a mask hides anything, shape (a, b), where losses were drawn given that it does."""
    share: Tensor | None = None
    """What each row counts under the token mean, shape (a,); None where all count the same."""
    t: Tensor | None = None
    """Rates, shape (a, b)."""

    def select(self, keep: Tensor) -> NestedLosses:
        """The same of fewer rows."""
        chance, t = (None if x is None else x[keep] for x in (self.chance, self.t))
        losses, rows, share = self.losses[keep], self.rows[keep], shares_of(self.share, keep)
        return replace(self, losses=losses, rows=rows, chance=chance, share=share, t=t)

    @property
    def weight(self) -> Tensor:
        """What each rate counts in a mean over t, shape (b,)."""
        b = self.losses.shape[1]
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
    """Losses of ``rows`` distinct rows under uniform t, by one of the two designs.

    Args:
        some_masked: draw the masks given that they hide something, where the method's are independent.
    """
    key = Key(seed, _NESTED_STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a, width = len(chosen), None
    if design == "cells":
        edges = rate_edges(rates, meter.objective.eps)
        width, rates = edges.diff(), len(edges) - 1
    u = key.row_uniforms(Stream.RATE, torch.arange(a * rates)).view(a, rates)
    t = u if width is None else edges[:-1] + u * width
    chance = share = None
    if meter.objective.normalization == "token":
        share = meter.shares(method)[chosen]
    if some_masked and method.masker == Bernoulli() and method.views.count == 1:
        chance = chance_of_some(t, meter.sizes(method)[chosen][:, None], meter.objective.eps)
        method = replace(method, masker=SomeMasked())
    losses = meter.losses(chosen.repeat_interleave(rates * masks), t.flatten().repeat_interleave(masks), method, key)
    return NestedLosses(losses.view(a, rates, masks), chosen, width, chance, share, t)


def cell_moments(losses: Tensor, chance: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row and rate g, v and the variance of the estimate of g, all unbiased, each of shape (a, b)."""
    mean, spread, c = losses.mean(-1), losses.var(-1), losses.shape[-1]
    if chance is None:
        return mean, spread, spread / c
    # g = q E[l | hidden] and E l^2 = q E[l^2 | hidden]; the square of g without that of the mean's noise.
    error = chance**2 * spread / c
    cell = chance * mean
    return cell, chance * (losses**2).mean(-1) - cell**2 + error, error


def components(
    losses: Tensor, width: Tensor | None = None, chance: Tensor | None = None, share: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C from losses of shape (a, b, c); nothing is clamped.

    With g, v and the variance e of the estimate of g of each row and rate (:func:`cell_moments`; v = s² and e = s²/c).
    iid: mean v; mean_i S²_i - mean e; Var_i(m_i.) - mean_i S²_i / b. Cells of width w: sum w v;
    sum w (m² - e) - ((sum w m)² - sum w² e); Var_i(sum w m) - mean_i sum w² e.
    Arguments as of :class:`NestedLosses`.
    """
    b = losses.shape[1]
    cell, noise, error = cell_moments(losses, chance)
    if width is None:
        of_row, within_row = cell.mean(1), cell.var(1).mean()
        data = of_row.var() + spread_change(of_row, share) - within_row / b
        return noise.mean(), within_row - error.mean(), data
    of_row, own = cell @ width, error @ width**2
    second = (cell**2 - error) @ width
    data = of_row.var() + spread_change(of_row, share) - own.mean()
    return (noise @ width).mean(), (second - of_row**2 + own).mean(), data


def parts_of(nested: NestedLosses, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`components` of all rows or some."""
    found = nested if keep is None else nested.select(keep)
    return components(found.losses, found.width, found.chance, found.share)


def decompose(losses: Tensor | NestedLosses, width: Tensor | None = None) -> Decomposition:
    """A, B, C, their sum and the mean loss, with jackknife standard errors over rows.

    Where few draws decide (fewer than :data:`LEAST_SEEN` of a cell have a masked token, or one rate makes up a tenth
    of A), neither A nor the total has an error. Intervals: of A, which cannot be negative, on the scale of logarithms;
    of B Student's; of C chi-square's for the rows' means, less their noise; of the total the wider one of the sum's and
    that on the scale of logarithms. Degrees of freedom are those of the effective number of rows: of rows of unlike
    length a few have most of A.
    """
    nested = losses if isinstance(losses, NestedLosses) else NestedLosses(losses, torch.arange(len(losses)), width)
    rows = len(nested.losses)

    def parts(keep: Tensor) -> tuple[Tensor, ...]:
        some = nested.select(keep)
        found = parts_of(some)
        return *found, sum(found), _mean(some)

    a, b, c, total, mean = jackknives(parts, rows, (*[UNIT] * 4, "nats/token"))
    if _few_decide(nested):
        a, total = (replace(x, stderr=math.nan) for x in (a, total))
    cell, noise, _ = cell_moments(nested.losses, nested.chance)
    freedom = _effective_rows(noise @ nested.weight) - 1
    a = replace(a, ends=of_positive(a.value, a.stderr, freedom))
    b = replace(b, freedom=_effective_rows(cell**2 @ nested.weight) - 1)
    of_means = _spread_of_rows(nested) - c.value
    c = replace(c, ends=tuple(end - of_means for end in of_variance(c.value + of_means, c.stderr, rows - 1)))
    sums = of_sum([with_ends(x) for x in (a, b, c)])
    total = replace(total, ends=widest(sums, of_positive(total.value, total.stderr, freedom)))
    return Decomposition(mask_pattern=a, mask_rate=b, data=c, total=total, mean=mean)


def _effective_rows(each: Tensor) -> float:
    """As how many equal rows these are, by what each adds, (a,): where a few have most of it, few speak for the sum.

    At least 2: of one row there is no error.
    """
    square = float((each**2).sum())
    return max(2.0, float(each.sum()) ** 2 / square) if square else float(len(each))


def _few_decide(nested: NestedLosses) -> bool:
    """Whether A rests on a few draws, and what others would have added is not known."""
    if nested.width is None:
        noise = cell_moments(nested.losses, nested.chance)[1]
        return nested.chance is not None and float(noise.max()) > _MOST_OF_ONE * float(noise.sum())
    seen, draws = (nested.losses != 0).sum((0, 2)), nested.losses[:, 0].numel()
    return nested.chance is None and bool(((seen < LEAST_SEEN) & (seen < draws)).any())


def _spread_of_rows(nested: NestedLosses) -> float:
    """Variance over rows of their means over t, the noise of those means included: C and a noise."""
    of_row = cell_moments(nested.losses, nested.chance)[0] @ nested.weight
    return float(of_row.var()) + spread_change(of_row, nested.share)


def _mean(nested: NestedLosses) -> Tensor:
    return token_mean(cell_moments(nested.losses, nested.chance)[0] @ nested.weight, nested.share)


def decompose_autoregressive(losses: Tensor, share: Tensor | None = None) -> Decomposition:
    """An autoregressive loss has no mask: all of its variance over rows is C. ``losses`` has shape (a,)."""
    nothing = Estimate(value=0.0, stderr=0.0, n=len(losses), unit=UNIT)

    def spread(keep: Tensor) -> float:
        return float(losses[keep].var()) + spread_change(losses[keep], shares_of(share, keep))

    data = jackknife(spread, len(losses), UNIT)
    data = replace(data, ends=of_variance(data.value, data.stderr, len(losses) - 1))
    mean = jackknife(lambda keep: float(token_mean(losses[keep], shares_of(share, keep))), len(losses), "nats/token")
    return Decomposition(mask_pattern=nothing, mask_rate=nothing, data=data, total=data, mean=mean)


def by_length(
    losses: Tensor | NestedLosses,
    tokens: Tensor,
    width: Tensor | None = None,
    groups: int = 3,
    parts: Callable[[Tensor], Decomposition] | None = None,
) -> list[dict]:
    """A, B and C of rows grouped by response length into groups of near-equal size.

    Rows of equal length stay together, so there are fewer groups where lengths repeat.

    Args:
        parts: takes a bool mask of a group's rows and gives their components; without it :func:`decompose`.
    """
    nested = losses if isinstance(losses, NestedLosses) else NestedLosses(losses, torch.arange(len(losses)), width)
    edges = torch.quantile(tokens.double(), torch.linspace(0, 1, groups + 1, dtype=torch.float64)[1:-1])
    group = torch.bucketize(tokens.double(), edges)
    out = []
    for g in group.unique().tolist():
        mine = group == g
        if int(mine.sum()) >= 2:
            found = (parts(mine) if parts else decompose(nested.select(mine))).as_dict()
            lengths = tokens[mine]
            out.append(
                {"tokens": [int(lengths.min()), int(lengths.max())], "n": int(mine.sum())}
                | {name: found[name] for name in ("mask_pattern", "mask_rate", "data")}
            )
    return out
