"""The draws that policy and reference share, their values, and a backward pass for each forward pass.

Legend: B pairs, R replicates; the responses of a batch are those chosen, then those rejected, 2B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.elbo_plan import Plan
from stabledllm.likelihood import bound
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS


@dataclass(frozen=True)
class Pair:
    """A prompt's chosen and rejected response, as rows.

    >>> Pair(TokenRow([1, 2, 3], prompt_length=1), TokenRow([1, 4], prompt_length=1)).tokens
    (2, 1)
    """

    chosen: TokenRow
    rejected: TokenRow

    @property
    def tokens(self) -> tuple[int, int]:
        """Response tokens of both."""
        return self.chosen.response_length, self.rejected.response_length


@dataclass(frozen=True)
class BoundEstimator:
    """How the ELBO of a response is estimated: a method of this library from a budget of forwards per response.

    The noise of a response is a function of seed, step, the pair's number and which of the two it is: neither the other
    pairs of a batch, nor the model change it. So policy and reference share it, and a reference's values may be
    computed once and kept.

    Args are those of :func:`stabledllm.elbo`.
    """

    method: str | Method = "lowdisc+fixedcount"
    budget: int = 8
    replicates: int | None = None
    density: TSampler | None = None
    eps: float = EPS
    tokens_per_batch: int = 4096
    packing: bool = False
    """Whether the rows of a pass go through the model end to end; the values are the same, up to rounding."""

    def draw(self, model, pairs: Sequence[Pair], numbers: Sequence[int], *, seed: int, step: int = 0) -> SharedDraws:
        """The draws for pairs, of which no forward has been made.

        Args:
            model: policy or reference, of which only the mask token, the blocks and the device are asked.
            numbers: the number of each pair, at least 0.

        Raises:
            UserError: as :func:`stabledllm.elbo` does, or not one number for each pair.
        """
        if len(numbers) != len(pairs):
            raise UserError(f"preferences: expected a number for each of {len(pairs)} pairs, found {len(numbers)}.")
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        of_rows = bound.BoundEstimator(**vars(self))
        each = [2 * n for n in numbers] + [2 * n + 1 for n in numbers]
        return SharedDraws(of_rows.draw(model, rows, each, seed=seed, step=step))


@dataclass(frozen=True)
class SharedDraws:
    """The draws of some pairs' responses: every model that is asked sees the same."""

    rows: bound.BoundDraws
    """Those of the 2B responses."""

    @property
    def plan(self) -> Plan:
        """What is drawn for the 2B rows."""
        return self.rows.plan

    @property
    def tokens(self) -> Tensor:
        """Response tokens of the chosen and the rejected one, shape (B, 2)."""
        return _by_pair(self.rows.tokens)

    @property
    def passes(self) -> int:
        """The number of forward passes of each model."""
        return self.rows.passes

    @property
    def replicates(self) -> int:
        """Independent estimates of each response."""
        return self.plan.groups

    def values(self, model) -> Tensor:
        """Each replicate's estimate of the ELBO of both responses in nats, shape (B, 2, R), without a graph."""
        return _by_pair(self.rows.values(model))

    def each(self) -> SharedDraws:
        """The same draws with every draw of t as a replicate of its own, those of a replicate next to each other."""
        return SharedDraws(replace(self.rows, plan=replace(self.plan, groups=self.plan.t.shape[2])))

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Mask ratio and importance weight of every draw, of a model of whole responses; float64, shape (B, 2, D)."""
        return _by_pair(self.plan.t[:, 0]), _by_pair(self.plan.weights())

    def parts(self, model, slopes: Tensor) -> Iterator[Tensor]:
        """Scalars, one for each forward pass, whose gradients add up to that of ``sum(slopes * values)``.

        With a backward after each, one pass's graph is in memory; the gradient is that of the joint one, however the
        loss of the values is curved.

        Args:
            slopes: the derivative of the loss by each estimate, shape (B, 2, R), from :meth:`DPOLoss.with_slopes`.
        """
        return self.rows.parts(model, slopes.detach().transpose(0, 1).flatten(0, 1))


def _by_pair(rows: Tensor) -> Tensor:
    """Values of 2B rows, shape (2B, ...), as (B, 2, ...)."""
    return rows.unflatten(0, (2, -1)).transpose(0, 1)
