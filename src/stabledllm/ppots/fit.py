"""From second moments to a density: EPR where it fits, the points themselves where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.sources import LowDiscrepancy, Stratified
from stabledllm.ppots.cells import CELLS
from stabledllm.ppots.epr import EPRFit, fit_epr, log_density, theta_of
from stabledllm.ppots.moments import LossMoments, SecondMoments
from stabledllm.ppots.shared_noise import shared_noise
from stabledllm.ppots.target import Moment, optimal_square

KL_THRESHOLD = 0.02
"""In nats, beyond what the points' own sampling error explains. Where p* is known exactly, KL = 0.02 costs about
4 % of the second moment: past that EPR is not used."""


SHARED = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of (E g)² tried where u is not iid."""


@dataclass(frozen=True)
class FitOptions:
    """How p is fitted. ``uniform_share`` bounds every weight by its reciprocal."""

    starts: int = 20
    family: Literal["epr", "tabulated"] = "epr"
    uniform_share: float = 0.05
    moment: Moment = "second_moment"
    seed: int = 0
    step_rows: int = 32
    """Rows of a training step: how finely strata or a lattice divide t."""
    strata: int | None = None


@dataclass(frozen=True)
class Fit:
    """The sampler, what it came from, and why EPR was not used where it was not."""

    sampler: Tabulated
    epr: EPRFit | None
    fallback: str | None
    kl_threshold: float
    """:data:`KL_THRESHOLD` plus the KL that sampling error alone gives the points."""
    points: np.ndarray
    """What p was fitted to, unnormalised, shape (b,)."""

    @property
    def kind(self) -> str:
        return "epr" if self.epr and not self.fallback else "tabulated"


def fit(moments: SecondMoments, source: str, options: FitOptions) -> Fit:
    """p over all of [0, 1], with the exact inverse CDF of the density that gives the weight.

    EPR is fitted by KL; if its KL from the points exceeds :data:`KL_THRESHOLD` by more than the points'
    sampling error explains, or no start converged, the density is the smoothed points, linear between rates
    and flat beyond the outermost, and ``fallback`` says so.
    """
    t, (nodes, share) = moments.t.numpy(), moments.nodes()
    points = _target(moments, source, options).sqrt().numpy()
    epr, fallback = None, None
    threshold = KL_THRESHOLD + _sampling_kl(moments, points)
    if options.family == "epr":
        width = moments.width.numpy()
        epr = fit_epr(nodes, width, points, share=share, starts=options.starts, seed=options.seed)
        if not epr.kl <= threshold:
            fallback = (
                f"EPR does not fit these points (KL {epr.kl:.3g} nats, threshold {threshold:.3g}); "
                f"p(t) is tabulated from the smoothed points instead."
            )
        elif not epr.converged:
            fallback = (
                f"EPR's fit is unfinished (none of {options.starts} starts converged); "
                f"p(t) is tabulated from the smoothed points instead."
            )
    if epr and not fallback:
        sampler = epr_sampler(epr.parameters, float(nodes[0, 0]), float(nodes[-1, -1]))
    else:
        sampler = Tabulated(interpolated(t, points), name="ppots")
    return Fit(sampler.mix_uniform(options.uniform_share), epr, fallback, threshold, points)


def _target(moments: SecondMoments, source: str, options: FitOptions) -> Tensor:
    """The square to fit for a source: with few strata part of (E g)² must stay in, as much as predicts least noise.

    The limit of fine strata leaves it out; a p made for that limit can be several times worse than uniform
    where ceil(sqrt n) strata are coarse and g is large. The share is chosen by the predicted variance of a step.
    """
    if source == "iid" or options.moment != "second_moment":
        return optimal_square(moments, source, options.moment)
    kind = Stratified(options.strata) if source == "strats" else LowDiscrepancy()
    losses: LossMoments = moments
    between, g = losses.between_rows(), losses.mean.mean(0)

    def noise(square: Tensor) -> float:
        table = Tabulated(interpolated(losses.t.numpy(), square.sqrt().numpy())).mix_uniform(options.uniform_share)
        weight = losses.kernels(table)[0]
        own = (losses.noise * weight).mean(0) + between * weight.mean(0)
        return float(losses.width @ own) + shared_noise(g, losses.t, table, kind, options.step_rows)[0]

    return min((optimal_square(losses, source, shared=share) for share in SHARED), key=noise)


def _sampling_kl(moments: SecondMoments, points: np.ndarray) -> float:
    """KL(points || truth) that sampling error alone gives: half the mean variance of their logarithm."""
    moment = moments.curve()
    # A cell in which every draw was 0 says nothing about itself: its error is taken as large as itself.
    relative = (moment.stderr / moment.value).nan_to_num(1.0).numpy() / 2
    share = moments.width.numpy() * points
    share = share / share.sum()
    # A factor common to all rates is normalised away; rows move all rates together, so this is an upper bound.
    return float(share @ relative**2) / 2


def epr_sampler(parameters: dict[str, float], low: float = 0.0, high: float = 1.0, cells: int = CELLS) -> Tabulated:
    """The EPR density, normalised numerically on ``cells`` equal cells of [0, 1].

    Beyond the outermost rates probed, ``low`` and ``high``, it is held constant: nothing was measured there, and
    an exponential of t^m extrapolated past its last point can be anything.
    """
    middle = np.clip((np.arange(cells) + 0.5) / cells, low, high)
    log_p = log_density(theta_of(parameters), np.clip(middle, 1e-12, 1 - 1e-12))
    return Tabulated(torch.from_numpy(np.maximum(np.exp(log_p - log_p.max()), 1e-12)), name="ppots")


def interpolated(t: np.ndarray, points: np.ndarray) -> torch.Tensor:
    """Points smoothed by a (1, 2, 1) / 4 kernel over neighbouring cells and interpolated; equal ones stay equal."""
    padded = np.pad(points, 1, mode="edge")
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    middle = (np.arange(CELLS) + 0.5) / CELLS
    return torch.from_numpy(np.interp(middle, t, smooth))
