"""Adaptive P-POTS: p(t) follows the losses that training computes anyway, with no forward pass of its own.

The paper's p is fitted once, on the untrained model; as training moves g and v, it goes stale (its first stated
limitation). Here every optimizer step's row losses refresh the second moments in cells of t, older steps are
forgotten exponentially, and p is refitted every few steps. p of a step depends on earlier steps only, so that the
weighted loss stays unbiased given the past.

Legend: b cells, n rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import Tabulated, TSampler, Uniform
from stabledllm.ppots.fit import interpolated
from stabledllm.ppots.profile import rate_edges

_SHOWN = 64
"""Points of t at which the history keeps p."""
_PER_OCTAVE = 2**16
_PRIOR = 8.0
"""Draws that a cell's neighbourhood counts for, beside the cell's own."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """How fast p follows.

    Raises:
        UserError: a value out of range.
    """

    every: int = 25
    """Optimizer steps between refits."""
    half_life: float = 100.0
    """Optimizer steps after which a loss counts half."""
    rates: int = 12
    """Equal cells of t; the lowest is split further."""
    uniform_share: float = 0.05

    def __post_init__(self) -> None:
        if self.every < 1 or not self.half_life > 0 or self.rates < 2:
            raise UserError(
                f"adaptive: expected every >= 1, half_life > 0 and rates >= 2, "
                f"found {self.every}, {self.half_life:g} and {self.rates}."
            )


class AdaptiveDensity:
    """Second moments by cell of t, and the density they make best. Deterministic: the same rows give the same bits.

    Args:
        shared_noise: whether the source leaves the noise that all rows share (iid t). Strata and lattices average it
            out, and what is left is ``E v + Var_x0 g``: the variance of the losses within a cell
            (docs/mathematics.md#the-best-density-of-t).
        cost: forwards that a row pays at t.
        start: density in force until the first refit, and the shape that cells without losses keep.
    """

    def __init__(
        self,
        options: AdaptiveOptions,
        *,
        shared_noise: bool,
        cost: Callable[[Tensor], Tensor],
        eps: float,
        start: Tabulated | None = None,
    ):
        self.options, self.shared_noise, self.start = options, shared_noise, start
        self.edges = rate_edges(options.rates, eps)
        self.middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.cost = cost(self.middle)
        self.sums = torch.zeros(4, len(self.middle), dtype=torch.float64)
        """Forgotten sums of w, w², w l and w l² of each cell, w the importance weight and l the plain loss."""
        self.steps = 0
        self.density: list[float] | None = None
        self.history: list[dict] = []

    def sampler(self) -> TSampler:
        """The density in force."""
        if self.density is not None:
            return Tabulated(self.density, name="adaptive", normalized=True)
        return self.start or Uniform()

    def update(self, t: Tensor, weight: Tensor, loss: Tensor) -> bool:
        """Take in the rows of one optimizer step; True where p was refitted after it.

        Args:
            t: mask ratios. weight: importance weights. loss: weighted row losses, views averaged. Each of shape (n,).
        """
        plain = loss / weight
        kept = plain.isfinite()
        cell = (torch.searchsorted(self.edges, t[kept].double()) - 1).clamp(0, len(self.middle) - 1)
        w, l = weight[kept].double(), plain[kept].double()
        self.sums *= 0.5 ** (1.0 / self.options.half_life)
        self.sums.index_add_(1, cell, torch.stack((w, w**2, w * l, w * l**2)))
        self.steps += 1
        due = self.steps % self.options.every == 0
        if due:
            self._refit()
        return due

    def moments(self) -> Tensor:
        """What p is proportional to the root of, times the forwards: by cell, shape (b,).

        Weighted by 1 / p within a cell, so that they are averages over t whatever p it was drawn from. A cell's
        neighbours count for a few draws.
        """
        w, square, first, second = self.sums
        seen = w > 0
        draws = torch.where(seen, w**2 / square.clamp(min=1e-300), 0.0)
        mean, moment = (torch.where(seen, x / w.clamp(min=1e-300), 0.0) for x in (first, second))
        if not self.shared_noise:
            moment = (moment - mean**2) * torch.where(draws > 1, draws / (draws - 1).clamp(min=1e-9), 0.0)
            draws = (draws - 1).clamp(min=0)
        shape = torch.ones_like(moment)
        if self.start is not None:  # m = p² kappa is what would make the start the best
            shape = (self.start.cdf(self.edges).diff() / self.edges.diff()) ** 2 * self.cost
        relative = moment / shape
        near = torch.exp(-torch.abs(torch.arange(len(w))[:, None] - torch.arange(len(w))).double())
        around = (near @ (draws * relative)) / (near @ draws).clamp(min=1e-300)
        return shape * (draws * relative + _PRIOR * around) / (draws + _PRIOR)

    def _refit(self) -> None:
        square = self.moments() / self.cost
        if not float(square.max()) > 0:
            return
        # Losses of another split over devices differ in their last bits; rounded to a fraction of an octave, what is
        # drawn from does not.
        octaves = (torch.maximum(square, 1e-4 * square.max()).log2() * _PER_OCTAVE).round() / _PER_OCTAVE
        points = torch.exp2(octaves / 2)
        table = Tabulated(interpolated(self.middle.numpy(), points.numpy()), name="adaptive")
        fitted = table.mix_uniform(self.options.uniform_share)
        self.density = fitted.density.tolist()
        at = (torch.arange(_SHOWN, dtype=torch.float64) + 0.5) / _SHOWN
        self.history.append({"step": self.steps, "p": fitted.log_prob(at).exp().tolist()})

    def state(self) -> dict:
        """Everything that a resumed run needs to go on with the same bits; plain lists and numbers."""
        return {
            "sums": self.sums.tolist(),
            "steps": self.steps,
            "density": self.density,
            "history": self.history,
            "options": asdict(self.options),
        }

    def load(self, state: dict) -> None:
        """Take up a :meth:`state`."""
        self.sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.steps, self.density, self.history = state["steps"], state["density"], list(state["history"])
