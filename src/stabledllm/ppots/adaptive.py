"""Adaptive P-POTS: p(t) is refitted during training from the losses of training itself, without extra forwards.

The paper fits p once, on the untrained model; training then changes g and v, and p goes stale (the first limitation
that the paper states). Here the row losses of every optimizer step update the second moments in cells of t, older
steps are forgotten exponentially, and p is refitted every few steps. The p of a step depends on earlier steps only, so
that the weighted loss stays unbiased given the past.

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
"""Number of points of t at which the history records p."""
PER_OCTAVE = 2**16
"""Second moments are rounded to this fraction of a factor of 2 before p is fitted to them."""
_PRIOR = 8.0
"""Number of draws that the average of the neighbouring cells counts for, against the draws of the cell itself."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """How often p is refitted and how fast old losses are forgotten.

    Raises:
        UserError: a value out of range.

    >>> AdaptiveOptions(half_life=50).every
    25
    """

    every: int = 25
    """Optimizer steps between refits."""
    half_life: float = 100.0
    """Number of optimizer steps after which a loss counts half."""
    rates: int = 12
    """Number of equal cells of t; the lowest is split further."""
    uniform_share: float = 0.05

    def __post_init__(self) -> None:
        if self.every < 1 or not self.half_life > 0 or self.rates < 2:
            raise UserError(
                f"adaptive: expected every >= 1, half_life > 0 and rates >= 2, "
                f"found {self.every}, {self.half_life:g} and {self.rates}."
            )


class AdaptiveDensity:
    """A density of t that is refitted to the losses of training. Deterministic: the same rows give the same bits.

    Args:
        shared_noise: whether the source keeps the noise that all rows share (iid t does). Strata and lattices average
            it out; p is then fitted to what remains, ``E v + Var_x0 g``, the variance of the losses within a cell
            (docs/mathematics.md#the-best-density-of-t).
        cost: forwards that a row pays at t.
        start: the density until the first refit; its shape also fills cells without losses. Uniform by default.
        per_octave: to what fraction of a factor of 2 second moments are rounded before p is fitted to them; a coarser
            one where losses are small differences of large numbers, of which more than the last bits are rounding.

    >>> p = AdaptiveDensity(AdaptiveOptions(every=1), shared_noise=True, cost=torch.ones_like, eps=0.001)
    >>> p.update(torch.tensor([0.2, 0.9]), torch.ones(2), torch.tensor([1.0, 3.0]))
    True
    >>> p.sampler().name
    'adaptive'
    """

    def __init__(
        self,
        options: AdaptiveOptions,
        *,
        shared_noise: bool,
        cost: Callable[[Tensor], Tensor],
        eps: float,
        start: Tabulated | None = None,
        per_octave: int = PER_OCTAVE,
    ):
        self.options, self.shared_noise, self.start, self.per_octave = options, shared_noise, start, per_octave
        self.edges = rate_edges(options.rates, eps)
        self.middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.cost = cost(self.middle)
        self.sums = torch.zeros(4, len(self.middle), dtype=torch.float64)
        """Exponentially forgotten sums of w, w², w l and w l² by cell, w the importance weight, l the plain loss."""
        self.steps = 0
        self.density: list[float] | None = None
        self.history: list[dict] = []

    def sampler(self) -> TSampler:
        """The density to draw from now."""
        if self.density is not None:
            return Tabulated(self.density, name="adaptive", normalized=True)
        return self.start or Uniform()

    def update(self, t: Tensor, weight: Tensor, loss: Tensor) -> bool:
        """Add the rows of one optimizer step and refit p when it is due; returns whether it was.

        Args:
            t: mask ratios, shape (n,).
            weight: importance weights, shape (n,).
            loss: weighted row losses, views averaged, shape (n,).
        """
        plain = loss / weight
        finite = plain.isfinite()
        cell = (torch.searchsorted(self.edges, t[finite].double()) - 1).clamp(0, len(self.middle) - 1)
        w, l = weight[finite].double(), plain[finite].double()
        self.sums *= 0.5 ** (1.0 / self.options.half_life)
        self.sums.index_add_(1, cell, torch.stack((w, w**2, w * l, w * l**2)))
        self.steps += 1
        due = self.steps % self.options.every == 0
        if due:
            self._refit()
        return due

    def moments(self) -> Tensor:
        """Second moments of the loss by cell, shape (b,): p is proportional to the root of these over the forwards.

        Losses count by 1 / p within a cell, so that the moments are averages over t, whatever p it was drawn from. The
        average of the neighbouring cells counts like a few draws.
        """
        w, square, first, second = self.sums
        seen = w > 0
        draws = torch.where(seen, w**2 / square.clamp(min=1e-300), 0.0)
        mean, moment = (torch.where(seen, x / w.clamp(min=1e-300), 0.0) for x in (first, second))
        if not self.shared_noise:
            moment = (moment - mean**2) * torch.where(draws > 1, draws / (draws - 1).clamp(min=1e-9), 0.0)
            draws = (draws - 1).clamp(min=0)
        shape = torch.ones_like(moment)
        if self.start is not None:  # the start is the best density where m = p² kappa
            shape = (self.start.cdf(self.edges).diff() / self.edges.diff()) ** 2 * self.cost
        relative = moment / shape
        near = torch.exp(-torch.abs(torch.arange(len(w))[:, None] - torch.arange(len(w))).double())
        around = (near @ (draws * relative)) / (near @ draws).clamp(min=1e-300)
        return shape * (draws * relative + _PRIOR * around) / (draws + _PRIOR)

    def _refit(self) -> None:
        square = self.moments() / self.cost
        if not float(square.max()) > 0:
            return
        # Losses differ in their last bits when rows are split over devices in another way; rounded to a fraction of an
        # octave, the density does not.
        octaves = (torch.maximum(square, 1e-4 * square.max()).log2() * self.per_octave).round() / self.per_octave
        points = torch.exp2(octaves / 2)
        table = Tabulated(interpolated(self.middle.numpy(), points.numpy()), name="adaptive")
        fitted = table.mix_uniform(self.options.uniform_share)
        self.density = fitted.density.tolist()
        at = (torch.arange(_SHOWN, dtype=torch.float64) + 0.5) / _SHOWN
        self.history.append({"step": self.steps, "p": fitted.log_prob(at).exp().tolist()})

    def state(self) -> dict:
        """The state that a resumed run needs to continue with the same bits, as lists and numbers."""
        return {
            "sums": self.sums.tolist(),
            "steps": self.steps,
            "density": self.density,
            "history": self.history,
            "options": asdict(self.options),
        }

    def load(self, state: dict) -> None:
        """Restore what :meth:`state` returned."""
        self.sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.steps, self.density, self.history = state["steps"], state["density"], list(state["history"])
