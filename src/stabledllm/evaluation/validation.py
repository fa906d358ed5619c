"""The evaluation loss: always the standard objective on the standard maskable set, with fixed noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabledllm.forward.meter import LossMeter
from stabledllm.models.kind import is_autoregressive
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import AUTOREGRESSIVE
from stabledllm.noise.streams import Key, Stream
from stabledllm.stats.estimate import Estimate

NOISE_SEED = 20_251_118
"""The same for every checkpoint, run and method: differences between checkpoints are paired."""


def row_nll(meter: LossMeter, draws: int = 4, rows: range | None = None) -> Tensor:
    """Bound on the NLL per response token of each row, in nats; unbiased, float64, shape (rows,).

    Each row gets ``draws`` ratios, one in each of as many equal strata, and exactly counted masks: the
    standard objective with less noise. The noise depends on the row's index alone. In block diffusion every block has
    ratios of its own, in other strata than its neighbours' of the same copy. An autoregressive model's NLL is exact
    and takes one forward.

    Args:
        rows: only these of the meter's, each with the noise that it has among all.
    """
    rows = rows if rows is not None else range(len(meter.rows))
    name = AUTOREGRESSIVE if is_autoregressive(meter.model) else "fixedcount"
    method = Method.parse(name, objective=meter.objective)
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


def mean_over_rows(values: Tensor, unit: str = "nats/token") -> Estimate:
    """Mean over rows; the standard error is over rows (NaN for a single one)."""
    n = len(values)
    stderr = float(values.std() / n**0.5) if n > 1 else math.nan
    return Estimate(value=float(values.mean()), stderr=stderr, n=n, unit=unit)


def validation_nll(meter: LossMeter, draws: int = 4) -> Estimate:
    """Mean of :func:`row_nll` with its standard error over rows."""
    return mean_over_rows(row_nll(meter, draws))
