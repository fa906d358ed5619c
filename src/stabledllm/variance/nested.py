"""A, B and C of the loss: a rows x b rates per row x c masks per cell.

Two designs. ``iid``: rates are iid uniform per row; all three estimators are unbiased, but a single rate near 0
can dominate A (the loss is 1/t with few masked tokens). ``cells``, the default: one uniform rate in each cell of
:func:`rate_edges`, weighted by the cell's width, which tames that tail; unbiased for A, and for B and C up to
the variance of g within single cells.

A is mask-pattern noise E Var_M[l], B mask-rate noise E Var_t[g], C data noise Var_x0[E_t g]; they add up to
Var(l) (law of total variance). Source: arXiv:2511.18159 and DESIGN section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.jackknife import jackknife
from stabledllm.measure import LossMeter
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import rate_edges

_NESTED_STEP = 0xDEC0
UNIT = "nats²"


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


def nested_losses(
    meter: LossMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int, design: str = "cells"
) -> NestedLosses:
    """Losses of ``rows`` distinct rows under uniform t, by one of the two designs."""
    key = Key(seed, _NESTED_STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a, width = len(chosen), None
    if design == "cells":
        edges = rate_edges(rates, meter.objective.eps)
        width, rates = edges.diff(), len(edges) - 1
    u = key.row_uniforms(Stream.RATE, torch.arange(a * rates)).view(a, rates)
    t = (u if width is None else edges[:-1] + u * width).flatten().repeat_interleave(masks)
    losses = meter.losses(chosen.repeat_interleave(rates * masks), t, method, key)
    return NestedLosses(losses.view(a, rates, masks), chosen, width)


def components(losses: Tensor, width: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C from losses of shape (a, b, c); nothing is clamped.

    iid: mean s²; mean_i S²_i - A/c; Var_i(m_i.) - mean_i S²_i / b. Cells of width w: sum w s²;
    sum w (m² - s²/c) - ((sum w m)² - sum w² s²/c); Var_i(sum w m) - mean_i sum w² s²/c.
    """
    _, b, c = losses.shape
    cell, noise = losses.mean(-1), losses.var(-1)
    if width is None:
        pattern, within_row = noise.mean(), cell.var(1).mean()
        return pattern, within_row - pattern / c, cell.mean(1).var() - within_row / b
    of_row, error = cell @ width, noise @ width**2 / c
    second = (cell**2 - noise / c) @ width
    return (noise @ width).mean(), (second - of_row**2 + error).mean(), of_row.var() - error.mean()


def decompose(losses: Tensor, width: Tensor | None = None) -> Decomposition:
    """A, B, C, their sum and the mean loss, with jackknife standard errors over rows."""
    rows = len(losses)

    def part(pick) -> Estimate:
        return jackknife(lambda keep: float(pick(components(losses[keep], width))), rows, UNIT)

    return Decomposition(
        mask_pattern=part(lambda abc: abc[0]),
        mask_rate=part(lambda abc: abc[1]),
        data=part(lambda abc: abc[2]),
        total=part(sum),
        mean=jackknife(lambda keep: float(_mean(losses[keep], width)), rows, "nats/token"),
    )


def _mean(losses: Tensor, width: Tensor | None) -> Tensor:
    cell = losses.mean(-1)
    return cell.mean() if width is None else (cell @ width).mean()


def decompose_autoregressive(losses: Tensor) -> Decomposition:
    """An autoregressive loss has no mask: all of its variance over rows is C. ``losses`` has shape (a,)."""
    nothing = Estimate(value=0.0, stderr=0.0, n=len(losses), unit=UNIT)
    data = jackknife(lambda keep: float(losses[keep].var()), len(losses), UNIT)
    mean = jackknife(lambda keep: float(losses[keep].mean()), len(losses), "nats/token")
    return Decomposition(mask_pattern=nothing, mask_rate=nothing, data=data, total=data, mean=mean)


def by_length(
    losses: Tensor,
    tokens: Tensor,
    width: Tensor | None = None,
    groups: int = 3,
    parts: Callable[[Tensor], Decomposition] | None = None,
) -> list[dict]:
    """A, B and C of rows grouped by response length into groups of near-equal size.

    Rows of equal length stay together, so there are fewer groups where lengths repeat.

    Args:
        parts: gives the components of a group's losses; without it :func:`decompose`.
    """
    edges = torch.quantile(tokens.double(), torch.linspace(0, 1, groups + 1, dtype=torch.float64)[1:-1])
    group = torch.bucketize(tokens.double(), edges)
    out = []
    for g in group.unique().tolist():
        mine = group == g
        if int(mine.sum()) >= 2:
            found = (parts(losses[mine]) if parts else decompose(losses[mine], width)).as_dict()
            lengths = tokens[mine]
            out.append(
                {"tokens": [int(lengths.min()), int(lengths.max())], "n": int(mine.sum())}
                | {name: found[name] for name in ("mask_pattern", "mask_rate", "data")}
            )
    return out
