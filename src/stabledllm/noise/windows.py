"""The mask ratios that an objective trains: all, a window or a bell of them; and the law of an exact count there.

Within a window [low, high] the rest of the library works with the place of the mask ratio in it, t in [0, 1]: sources,
densities and cells stay those of [0, 1], and the ratio itself is ``low + (high - low) t``. Under a bell the place is
the share of the bell below the ratio, so that a uniform place is a ratio drawn from the bell. Loads no torch until
counts are drawn, for commands that only check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from stabledllm.errors import UserError, did_you_mean
from stabledllm.noise.bell import Bell, checked_bell, count_law, density, quantile, share_below
from stabledllm.noise.weightings import WEIGHTINGS, power_of

if TYPE_CHECKING:
    from torch import Tensor

    from stabledllm.noise.objective import Objective
    from stabledllm.noise.parts import MethodOptions, Part
    from stabledllm.noise.schedule import Counts

NORMALIZATIONS = ("row", "token", "masked")
TOKENS = ("all", "cart", "lift", "gift")
"""How ``objective.tokens`` weighs or chooses single tokens (``noise/tokens.py``)."""
CHOSEN = ("lift", "gift")
"""Those of which the model is asked which tokens are masked: their number does not decide the law of a mask."""


def checked_window(window: Sequence[float] | None, weighting: str, normalization: str, corrected: bool):
    """The window as a pair of numbers, None where there is none.

    Raises:
        UserError: not 0 <= low < high <= 1; a window, or the mean over masked tokens, under ``cosine``, which has its
            own; a correction without a window, or of a bell.

    >>> checked_window([0.3, 0.8], "elbo", "row", corrected=False)
    (0.3, 0.8)
    """
    if weighting == "bell" and corrected:
        raise UserError(
            "objective.corrected: expected false beside weighting 'bell', found true: a bell with the weight 1/p(t) "
            "is the bound itself, drawn with other noise; write method=bell and leave the weighting out."
        )
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


def place_of(ratio: float, window: tuple[float, float] | None, bell: Bell | None = None) -> float:
    """The place in the window or bell of a mask ratio from which views are left out: 1 for one in (high, 1].

    Raises:
        UserError: a ratio below the window, under which no second view would be left, or above 1.

    >>> place_of(0.5, (0.25, 0.75)), place_of(1.0, (0.25, 0.75)), place_of(0.4, None)
    (0.5, 1.0, 0.4)
    """
    if window is None and bell is None:
        return ratio
    low, high = window or (0.0, 1.0)
    if not low < ratio <= 1.0:
        raise UserError(f"mirror: expected mirror_below above the window's {low:g} and at most 1, found {ratio:g}.")
    place = min(1.0, (ratio - low) / (high - low))
    return share_below(place, bell) if bell else place


def placed(options: MethodOptions, part: Part, objective: Objective) -> MethodOptions:
    """The options of a part that is made for an objective, with the mask ratio that it reads, if any, as a place.

    >>> from stabledllm.noise.objective import Objective
    >>> from stabledllm.noise.parts import PARTS, MethodOptions
    >>> placed(MethodOptions(mirror_below=0.5), PARTS["mirror"], Objective(window=(0.25, 0.75))).mirror_below
    0.5
    """
    if "mirror_below" not in part.options:
        return options
    return replace(options, mirror_below=place_of(options.mirror_below, objective.window, objective.bell))


@dataclass(frozen=True)
class InWindow:
    """The rule by which an exact count follows from t: it has the law that independent masks give it in the window.

    A token is masked with a probability p that is uniform on [least, most], or has the bell as its density there; given
    that one is masked at all, the count k has the probability of its cell of t.

    >>> import torch
    >>> InWindow(0.0, 1.0).masked_count(torch.tensor([0.1, 0.9]), torch.tensor([2, 4]))  # as without a window
    tensor([1, 4])
    """

    least: float
    most: float
    bell: Bell | None = None

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
        sizes = [int(size)] if size.numel() == 1 else size.unique().tolist()
        if len(sizes) == 1:  # nothing to sort out
            return value(_edges(sizes[0], self.least, self.most, self.bell).to(of.device), of).double()
        size, out = size.expand_as(of), of.new_zeros(of.shape).double()
        for one in sizes:
            own = size == one
            out[own] = value(_edges(one, self.least, self.most, self.bell).to(of.device), of[own]).to(out)
        return out


@lru_cache(maxsize=2048)
def _edges(size: int, least: float, most: float, bell: Bell | None) -> Tensor:
    """Edges 0 to 1 of the cells of t of the counts 1..P, whose widths are the counts' probabilities, shape (P + 1,)."""
    from stabledllm.noise.counts import count_coefficients

    mass = count_law(size, bell, least, most, 1) if bell else count_coefficients(size, least, 1.0, most).clamp(min=0.0)
    edges = mass.new_zeros(size + 1)
    edges[1:] = (mass.cumsum(0) / mass.sum()).clamp(max=1.0)
    edges[-1] = 1.0
    return edges


class MaskRatios:
    """What an objective's ``window`` and bell decide: how t becomes a mask ratio, a masking probability and a count.

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
    bell: Bell | None
    tokens: str

    def __post_init__(self) -> None:
        for key, known in (("weighting", WEIGHTINGS), ("normalization", NORMALIZATIONS), ("tokens", TOKENS)):
            if (value := getattr(self, key)) not in known:
                raise UserError(f"objective.{key}: unknown '{value}'{did_you_mean(value, known)}.")
        checked = {
            "power": power_of(self.weighting, self.power),
            "window": checked_window(self.window, self.weighting, self.normalization, self.corrected),
            "bell": checked_bell(self.bell, self.weighting),
        }
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound on the NLL itself, as a mean over rows or over tokens."""
        whole = self.window in (None, (0.0, 1.0)) and self.normalization != "masked"
        return self.weighting == "elbo" and whole and self.tokens == "all"

    @property
    def has_places(self) -> bool:
        """Whether t is the place of a mask ratio in a window or bell, and not the ratio itself."""
        return bool(self.window or self.bell)

    @property
    def counts(self) -> Counts | InWindow:
        """The rule by which the number of masked tokens follows from t."""
        if self.has_places:
            return InWindow(*self.bounds, self.bell)
        return "cosine" if self.weighting == "cosine" else "linear"

    def ratio(self, t: Tensor) -> Tensor:
        """The mask ratio at t: t itself, or that at the place t in the window or bell."""
        place = quantile(t, self.bell) if self.bell else t
        return place if not self.window else self.window[0] + self.width * place

    def density_at(self, t: Tensor) -> Tensor:
        """The density that a uniform t gives the mask ratio, at t: 1 without a window or bell; shape of ``t``."""
        return (density(quantile(t, self.bell), self.bell) if self.bell else t * 0 + 1) / self.width

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

    def coefficients(self, size: int) -> Tensor:
        """The c_k of exact counts k = 1..P under this objective (``noise/counts.py``); float64, shape (P,)."""
        from stabledllm.noise.counts import count_coefficients

        least, most = self.bounds
        if self.bell:
            return count_law(size, self.bell, least, most, 0)
        return count_coefficients(size, least, self.power, most)

    @property
    def floor(self) -> float:
        """The least masking probability as a share of the largest: how far p_mask falls towards t = 0."""
        return self.bounds[0] / self.bounds[1]

    @property
    def mean_p_mask(self) -> float:
        """``E[p_mask]`` over the objective's mask ratios."""
        a, b = self.bell or (1.0, 1.0)
        least, most = self.bounds
        return least + (most - least) * a / (a + b)

    @property
    def scale(self) -> float:
        """The constant factor of every coefficient: 1 / E[p_mask] for the mean over masked tokens, and the window's
        width where it is ``corrected``."""
        scale = 1.0 / self.mean_p_mask if self.normalization == "masked" else 1.0
        return scale * self.width if self.corrected else scale


def _p_mask(ratio: Tensor | float, eps: float) -> Tensor | float:
    """``schedule.p_mask``, which loads torch."""
    from stabledllm.noise.schedule import p_mask

    return p_mask(ratio, eps)
