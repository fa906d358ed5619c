"""The fit of p(t) to second moments: EPR where it fits well, else the points themselves, smoothed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.sources import Source
from stabledllm.ppots.cells import CELLS
from stabledllm.ppots.epr import EPRFit, fit_epr, log_density, theta_of
from stabledllm.ppots.moments import LossMoments, SecondMoments
from stabledllm.ppots.shared_noise import shared_noise
from stabledllm.ppots.target import optimal_square

KL_THRESHOLD = 0.02
"""Largest KL of EPR from the points, in nats, beyond what their sampling error explains. Where p* is known exactly, a
KL of 0.02 costs about 4 % of the second moment."""
SHARED = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""The shares of (E g)² that are tried where u is not iid."""


@dataclass(frozen=True)
class FitOptions:
    """The settings of a fit. ``uniform_share`` bounds every importance weight by its reciprocal.

    >>> FitOptions(family="tabulated").uniform_share
    0.05
    """

    starts: int = 20
    family: Literal["epr", "tabulated"] = "epr"
    uniform_share: float = 0.05
    moment: str = field(default="second_moment", init=False)
    """The moment that p is fitted to, recorded in its file: older files could name another."""
    seed: int = 0
    step_rows: int = 32
    """Rows of a training step, which decide how finely strata or a lattice divide t."""


@dataclass(frozen=True)
class Fit:
    """A fitted density, with the points that it was fitted to.

    >>> Fit(Tabulated([1.0]), "tabulated", epr=None, kl_threshold=0.02, points=np.ones(2)).sampler.unbiased
    True
    """

    sampler: Tabulated
    kind: Literal["epr", "tabulated"]
    """The form of the density."""
    epr: EPRFit | None
    """The best EPR curve where one was asked for, also where it is not used."""
    kl_threshold: float
    """:data:`KL_THRESHOLD` plus the KL that sampling error alone gives the points."""
    points: np.ndarray
    """The unnormalised values that p was fitted to, shape (b,)."""


def fit(moments: SecondMoments, source: Source, options: FitOptions) -> Fit:
    """Fit p over all of [0, 1]; t is drawn by the exact inverse CDF of the same density that gives the weight.

    EPR is fitted by KL. If its KL from the points exceeds :data:`KL_THRESHOLD` by more than the points' sampling error
    explains, or no start converged, the density is the smoothed points, linear between rates and flat beyond the
    outermost.

    >>> from stabledllm.noise.sources import IID
    >>> moments = SecondMoments(edges=torch.linspace(0, 1, 4).double(), moment=torch.ones(4, 3).double(),
    ...                         cost=torch.ones(3).double())
    >>> fit(moments, IID(), FitOptions(family="tabulated")).sampler.weight(torch.tensor([0.1, 0.9]))
    tensor([1., 1.], dtype=torch.float64)
    """
    t, (nodes, share) = moments.t.numpy(), moments.nodes()
    points = _target(moments, source, options).sqrt().numpy()
    threshold = KL_THRESHOLD + _sampling_kl(moments, points)
    epr, kind = None, "tabulated"
    if options.family == "epr":
        width = moments.width.numpy()
        epr = fit_epr(nodes, width, points, share=share, starts=options.starts, seed=options.seed)
        kind = "epr" if epr.kl <= threshold and epr.converged else "tabulated"
    if kind == "epr":
        sampler = epr_sampler(epr.parameters, float(nodes[0, 0]), float(nodes[-1, -1]))
    else:
        sampler = Tabulated(interpolated(t, points), name="ppots")
    return Fit(sampler.mix_uniform(options.uniform_share), kind, epr, threshold, points)


def _target(moments: SecondMoments, source: Source, options: FitOptions) -> Tensor:
    """The square of p to fit for a source of u, shape (b,).

    Fine strata take (E g)² out altogether, but a p made for that limit can be several times worse than uniform t where
    ceil(sqrt n) strata are coarse and g is large: then a share of (E g)² must stay in. It is the share with the least
    predicted variance of a step.
    """
    if source.independent:
        return optimal_square(moments)
    losses: LossMoments = moments
    between, g = losses.between_rows(), losses.mean.mean(0)

    def noise(square: Tensor) -> float:
        table = Tabulated(interpolated(losses.t.numpy(), square.sqrt().numpy())).mix_uniform(options.uniform_share)
        weight = losses.kernels(table)[0]
        own = (losses.noise * weight).mean(0) + between * weight.mean(0)
        return float(losses.width @ own) + shared_noise(g, losses.t, table, source, options.step_rows)

    return min((optimal_square(losses, source, shared=share) for share in SHARED), key=noise)


def _sampling_kl(moments: SecondMoments, points: np.ndarray) -> float:
    """The KL(points || truth) that comes from sampling error alone: half the mean variance of the points' logarithm."""
    moment = moments.curve()
    # Where every draw of a cell was 0 nothing is known of its error: it is taken to be as large as the value.
    relative = (moment.stderr / moment.value).nan_to_num(1.0).numpy() / 2
    share = moments.width.numpy() * points
    share = share / share.sum()
    # A factor common to all rates is normalised away; rows move all rates together, so this is an upper bound.
    return float(share @ relative**2) / 2


def epr_sampler(parameters: dict[str, float], low: float, high: float) -> Tabulated:
    """The EPR density, normalised numerically on equal cells of [0, 1].

    Beyond the outermost rates probed, ``low`` and ``high``, it is held constant: nothing was measured there, and
    an exponential of t^m can take any value beyond the last point that it was fitted to.

    >>> flat = {"a": 1.0, "b": 1.0, "A": 1.0, "kappa": 1e-5, "r": 0.0, "q": 0.0, "m": 2.0}
    >>> epr_sampler(flat, 0.0, 1.0).weight(torch.tensor([0.1, 0.9])).round(decimals=3)
    tensor([1., 1.], dtype=torch.float64)
    """
    middle = np.clip((np.arange(CELLS) + 0.5) / CELLS, low, high)
    log_p = log_density(theta_of(parameters), np.clip(middle, 1e-12, 1 - 1e-12))
    return Tabulated(torch.from_numpy(np.maximum(np.exp(log_p - log_p.max()), 1e-12)), name="ppots")


def interpolated(t: np.ndarray, points: np.ndarray) -> torch.Tensor:
    """The points, smoothed over neighbouring cells by the kernel (1, 2, 1) / 4, at the middles of :data:`CELLS` cells.

    Between the rates t they are interpolated linearly; equal points stay equal.

    >>> interpolated(np.array([0.25, 0.75]), np.array([1.0, 5.0]))[[0, -1]]  # 3/4 of the own point
    tensor([2., 4.], dtype=torch.float64)
    """
    padded = np.pad(points, 1, mode="edge")
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    middle = (np.arange(CELLS) + 0.5) / CELLS
    return torch.from_numpy(np.interp(middle, t, smooth))
