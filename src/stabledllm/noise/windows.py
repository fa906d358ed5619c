"""The mask ratios that an objective trains: all, or a window of them; and the law of an exact count in a window.

Within a window [low, high] the rest of the library works with the place of the mask ratio in it, t in [0, 1]: sources,
densities and cells stay those of [0, 1], and the ratio itself is ``low + (high - low) t``. Loads no torch until counts
are drawn, for commands that only check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from stabledllm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from stabledllm.noise.parts import MethodOptions, Part
    from stabledllm.noise.schedule import Counts


def checked_window(window: Sequence[float] | None, weighting: str, normalization: str, corrected: bool):
    """The window as a pair of numbers, None where there is none.

    Raises:
        UserError: not 0 <= low < high <= 1; a window, or the mean over masked tokens, under ``cosine``, which has its
            own; a correction without a window.

    >>> checked_window([0.3, 0.8], "elbo", "row", corrected=False)
    (0.3, 0.8)
    """
    if weighting == "cosine" and (window is not None or normalization == "masked"):
        key, found = ("window", list(window)) if window is not None else ("normalization", normalization)
        raise UserError(
            f"objective.{key}: expected none beside weighting 'cosine', which has counts and a mean of its own, found "
            f"{found}."
        )
    if window is None:
        if corrected:
            raise UserError("objective.corrected: expected objective.window beside it, found none.")
        return None
    if len(window) != 2 or not 0.0 <= window[0] < window[1] <= 1.0:
        raise UserError(
            f"objective.window: expected two mask ratios 0 <= low < high <= 1, such as [0.3, 0.8], found "
            f"{list(window)}."
        )
    return float(window[0]), float(window[1])


def place_of(ratio: float, window: tuple[float, float] | None) -> float:
    """The place in the window of a mask ratio from which views are left out: 1 for one in (high, 1].

    Raises:
        UserError: a ratio below the window, under which no second view would be left, or above 1.

    >>> place_of(0.5, (0.25, 0.75)), place_of(1.0, (0.25, 0.75)), place_of(0.4, None)
    (0.5, 1.0, 0.4)
    """
    if window is None:
        return ratio
    low, high = window
    if not low < ratio <= 1.0:
        raise UserError(f"mirror: expected mirror_below above the window's {low:g} and at most 1, found {ratio:g}.")
    return min(1.0, (ratio - low) / (high - low))


def placed(options: MethodOptions, part: Part, window: tuple[float, float] | None) -> MethodOptions:
    """The options of a part that is made for a window, with its mask ratio, if it reads one, as the place in it.

    >>> from stabledllm.noise.parts import PARTS, MethodOptions
    >>> placed(MethodOptions(mirror_below=0.5), PARTS["mirror"], (0.25, 0.75)).mirror_below
    0.5
    """
    if "mirror_below" not in part.options:
        return options
    return replace(options, mirror_below=place_of(options.mirror_below, window))


@dataclass(frozen=True)
class InWindow:
    """The rule by which an exact count follows from t: it has the law that independent masks give it in the window.

    A token is masked with a probability p that is uniform on [least, most]; given that one is masked at all, the count
    k has the probability of its cell of t.

    >>> import torch
    >>> InWindow(0.0, 1.0).masked_count(torch.tensor([0.1, 0.9]), torch.tensor([2, 4]))  # as without a window
    tensor([1, 4])
    """

    least: float
    most: float

    def masked_count(self, t: Tensor, size: Tensor) -> Tensor:
        """The number of tokens that are masked at t, at least 1 of ``size`` = P; int64, shape of ``t``."""
        import torch

        def cell(edges: Tensor, t: Tensor) -> Tensor:
            return torch.searchsorted(edges, t.double()).clamp(1, len(edges) - 1)

        return self._by_size(cell, t, size).long()

    def largest_ratio(self, count: Tensor, size: Tensor) -> Tensor:
        """The largest t at which at most ``count`` of ``size`` tokens are masked; float64, shape of ``count``."""
        return self._by_size(lambda edges, count: edges[count], count, size)

    def _by_size(self, value: Callable[[Tensor, Tensor], Tensor], of: Tensor, size: Tensor) -> Tensor:
        """``value(edges of the counts' cells of t, of)`` with the edges for each row's own size; float64."""
        size, out = size.expand_as(of), of.new_zeros(of.shape).double()
        for one in size.unique().tolist():
            own = size == one
            out[own] = value(_edges(one, self.least, self.most).to(of.device), of[own]).to(out)
        return out


@lru_cache(maxsize=2048)
def _edges(size: int, least: float, most: float) -> Tensor:
    """Edges 0 to 1 of the cells of t of the counts 1..P, whose widths are the counts' probabilities, shape (P + 1,)."""
    from stabledllm.noise.counts import count_coefficients

    mass = count_coefficients(size, least, 1.0, most).clamp(min=0.0)
    edges = mass.new_zeros(size + 1)
    edges[1:] = (mass.cumsum(0) / mass.sum()).clamp(max=1.0)
    edges[-1] = 1.0
    return edges


class MaskRatios:
    """What an objective's ``window`` decides: how t becomes a mask ratio, a masking probability and a count.

    >>> from stabledllm.noise.objective import Objective
    >>> objective = Objective("unweighted", "masked", eps=0.0, window=(0.3, 0.8))
    >>> round(objective.scale, 9) == round(1 / 0.55, 9)  # one over the mean mask ratio
    True
    """

    weighting: str
    normalization: str
    eps: float
    power: float | None
    window: tuple[float, float] | None
    corrected: bool

    @property
    def counts(self) -> Counts | InWindow:
        """The rule by which the number of masked tokens follows from t."""
        if self.window:
            return InWindow(*self.bounds)
        return "cosine" if self.weighting == "cosine" else "linear"

    def ratio(self, t: Tensor) -> Tensor:
        """The mask ratio at t: t itself, or that at the place t in the window."""
        return t if not self.window else self.window[0] + self.width * t

    def p_mask(self, t: Tensor) -> Tensor:
        """The masking probability at t, same shape."""
        return _p_mask(self.ratio(t), self.eps)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest masking probability: eps and 1, or those at the ends of the window."""
        return tuple(_p_mask(end, self.eps) for end in self.window) if self.window else (self.eps, 1.0)

    @property
    def width(self) -> float:
        """The width of the window, 1 without one."""
        return self.window[1] - self.window[0] if self.window else 1.0

    @property
    def law(self) -> tuple[float, float | None, float]:
        """What the weights of exact counts depend on: the least p_mask, the power, and the largest p_mask."""
        return self.bounds[0], self.power, self.bounds[1]

    @property
    def floor(self) -> float:
        """The least masking probability as a share of the largest: how far p_mask falls towards t = 0."""
        return self.bounds[0] / self.bounds[1]

    @property
    def scale(self) -> float:
        """The constant factor of every coefficient: 1 / E[p_mask] for the mean over masked tokens, and the window's
        width where it is ``corrected``."""
        scale = 2.0 / sum(self.bounds) if self.normalization == "masked" else 1.0
        return scale * self.width if self.corrected else scale


def _p_mask(ratio: Tensor | float, eps: float) -> Tensor | float:
    """``schedule.p_mask``, which loads torch."""
    from stabledllm.noise.schedule import p_mask

    return p_mask(ratio, eps)
