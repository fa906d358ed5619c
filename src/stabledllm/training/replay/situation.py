"""What is known of a step beside its rows: the norms and losses of the steps before it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

from stabledllm.noise.methods import Method

ORDINARY = 2.0
"""Up to this many times the median a norm is no outlier."""
_WORSE = 1.3
"""How many times the last steps' loss the rows' NLL is where the model got worse, at the least."""
_RECENT, _BEFORE = 3, 20
"""Steps just before the one that is explained, and the steps before these whose mean loss the rows' NLL is held
against: a whole window's would hide how far a young model has come since."""


@dataclass(frozen=True)
class Situation:
    """What is known of a step beside its rows.

    ``norms``, ``losses``: of the steps before it, the newest last. ``median``: of these norms; None where they are too
    few. ``rate``: the learning rate.
    """

    step: int
    norm: float
    median: float | None
    norms: list[float]
    losses: list[float]
    rate: float
    method: Method
    problem: str | None = None
    """What was not finite, where something was not."""

    @property
    def last_norms(self) -> list[float]:
        """The norms of the few steps just before it."""
        return self.norms[-_RECENT:]

    @property
    def loss_before(self) -> float | None:
        """The mean loss of the steps before these few; None where there is none."""
        before = (self.losses[:-_RECENT] or self.losses)[-_BEFORE:]
        return mean(before) if before else None

    def is_worse(self, nll: float | None) -> bool:
        """Whether rows of this NLL say that the model got worse."""
        before = self.loss_before
        return nll is not None and before is not None and nll >= _WORSE * before

    @property
    def is_rising(self) -> bool:
        """Whether the norms rose in the last few steps."""
        earlier = self.norms[:-_RECENT]
        return bool(earlier) and sum(norm >= ORDINARY * median(earlier) for norm in self.last_norms) >= 2
