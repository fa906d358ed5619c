"""The evaluation loss: always the standard objective on the standard maskable set, with fixed noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabledllm.forward.chosen import further_forwards
from stabledllm.forward.meter import LossMeter
from stabledllm.models.kind import is_autoregressive
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import AUTOREGRESSIVE
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.takes import exact_or_standard
from stabledllm.stats.estimate import Estimate

NOISE_SEED = 20_251_118
"""The same for every checkpoint, run and method, so that differences between them are paired."""


def row_nll(meter: LossMeter, draws: int = 4, rows: range | None = None) -> Tensor:
    """An unbiased estimate of the bound on each row's NLL per response token, in nats, float64, shape (rows,).

    Each row gets ``draws`` mask ratios, one in each of as many equal strata, and masks of an exact count: the standard
    objective with less noise. The noise depends on the row's index alone. In block diffusion every block has mask
    ratios of its own, in other strata than its neighbours' in the same view. An autoregressive model's NLL is exact and
    takes one forward. Where the objective has no exact count (``gift``), masks are independent.

    Args:
        rows: the rows of the meter to measure, each with the noise that it has among all; without it all.
    """
    rows = rows if rows is not None else range(len(meter.rows))
    method = _method_of(meter)
    if method.autoregressive:
        chosen = torch.tensor(rows)
        return meter.losses(chosen, torch.ones(len(chosen), dtype=torch.float64), method, Key(NOISE_SEED, 0))
    n, blocks, start = len(rows), meter.ratios_per_row, rows.start * draws
    key = Key(NOISE_SEED, 0)
    u = key.row_uniforms(Stream.RATE, start * blocks + torch.arange(n * draws * blocks)).view(n, draws, blocks)
    stratum = (torch.arange(draws)[:, None] + torch.arange(blocks)) % draws
    t = ((stratum + u) / draws).view(n * draws, blocks).squeeze(1)
    row = (start + torch.arange(n * draws)) // draws
    return meter.losses(row, t, method, key, start=start).view(n, draws).mean(1)


def row_forwards(meter: LossMeter, draws: int = 4) -> int:
    """The most forwards that :func:`row_nll` takes for all rows of a meter; under ``lift`` their mean number."""
    method, rows = _method_of(meter), meter.rows
    if method.autoregressive:
        return len(rows)
    further = further_forwards(method, Uniform(), meter.sizes(method))
    return math.ceil(len(rows) * draws * (1 + further))


def _method_of(meter: LossMeter) -> Method:
    name = AUTOREGRESSIVE if is_autoregressive(meter.model) else exact_or_standard(meter.objective)
    return Method.parse(name, objective=meter.objective)


def mean_over_rows(values: Tensor, unit: str = "nats/token", share: Tensor | None = None) -> Estimate:
    """The mean over rows with its standard error over rows (NaN for a single row).

    Args:
        share: of each row in a mean over tokens, already a factor of its value (:func:`shares`); None where all rows
            count the same.

    >>> mean_over_rows(torch.tensor([1.0, 3.0]), share=torch.tensor([0.5, 1.5])).stderr  # each token has 2
    0.0
    """
    n, mean = len(values), values.mean()
    spread = values if share is None else values - share * mean
    stderr = float(spread.std() / n**0.5) if n > 1 else math.nan
    return Estimate(value=float(mean), stderr=stderr, n=n, unit=unit)


def shares(meter: LossMeter) -> Tensor | None:
    """The share of each row of a meter in the mean over tokens; None where its objective counts all rows the same."""
    return None if meter.objective.normalization == "row" else meter.shares(Method())


def validation_nll(meter: LossMeter, draws: int = 4) -> Estimate:
    """The mean of :func:`row_nll` with its standard error over rows."""
    return mean_over_rows(row_nll(meter, draws), share=shares(meter))
