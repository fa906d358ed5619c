"""The density of t for preferences: second moments of what one draw adds to a pair's loss, which p is fitted to.

To first order a draw of t and a mask adds ``slope · d`` to the loss, d the policy's loss there less the reference's on
the same mask, and ``slope · ∇l`` to its gradient (docs/preferences.md#the-density-of-t). Both are smaller where policy
and reference are alike, in other places of t than the loss itself.

Legend: B pairs, R replicates, n responses, a of them probed, b cells of t, c masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import LossMeter, Meter
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.sources import Source
from stabledllm.noise.streams import Key
from stabledllm.ppots.fit import SHARED, interpolated
from stabledllm.ppots.moments import Curve, LossMoments, SecondMoments
from stabledllm.ppots.profile import Profile
from stabledllm.ppots.shared_noise import shared_forms
from stabledllm.ppots.target import optimal_square
from stabledllm.preference.draws import Pair
from stabledllm.preference.loss import DPOLoss


def slopes_of(loss: DPOLoss, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    """The derivative of each pair's loss by each bound, that of the policy and of the reference; shape (B, 2, 2).

    Args:
        policy, reference: estimates of the bounds in nats, shape (B, 2, R). tokens: of both responses, shape (B, 2).

    >>> same = torch.zeros(1, 2, 2)  # alike: the sigmoid is 1/2
    >>> slopes_of(DPOLoss(beta=0.5), same, same, torch.ones(1, 2))  # chosen, then rejected, by policy and reference
    tensor([[[-0.2500,  0.2500],
             [ 0.2500, -0.2500]]])
    """
    with torch.enable_grad():
        given = [values.detach().requires_grad_() for values in (policy, reference)]
        slopes = torch.autograd.grad(loss(*given, tokens).value.sum(), given)
    return torch.stack([by_replicate.sum(2) for by_replicate in slopes], 2)


def responses_of(pairs: Sequence[Pair]) -> list[TokenRow]:
    """The responses as rows: chosen and rejected of the first pair, of the second, ...

    >>> pair = Pair(TokenRow([1, 2], prompt_length=1), TokenRow([1, 3], prompt_length=1))
    >>> [row.input_ids for row in responses_of([pair])]
    [[1, 2], [1, 3]]
    """
    return [row for pair in pairs for row in (pair.chosen, pair.rejected)]


class DifferenceMeter:
    """A meter of what a draw adds to the loss of its pair, to first order: policy and reference on the same masks.

    Args:
        policy, reference: meters of the same responses under the same objective.
        slopes: the derivative of the pair's loss by either bound, shape (n, 2), from :func:`slopes_of`.
    """

    def __init__(self, policy: LossMeter, reference: LossMeter, slopes: Tensor):
        self.rows, self.objective = policy.rows, policy.objective
        self._meters = (policy, reference)
        # A bound is less the loss per token times the number of tokens.
        self._factors = -slopes.double().cpu() * policy.sizes(Method())[:, None]

    def view_losses(self, row: Tensor, t: Tensor, method: Method, key: Key) -> tuple[Tensor, Tensor]:
        """What each view adds, float64, and which views are active, both of shape (n, K); as a meter of losses."""
        (ours, active), (theirs, _) = (meter.view_losses(row, t, method, key) for meter in self._meters)
        factor = self._factors[row]
        return factor[:, :1] * ours + factor[:, 1:] * theirs, active


def weighed(kind: type[Meter], factors: Tensor) -> type[Meter]:
    """A kind of meter whose losses and gradients of each row are multiplied by a factor of that row.

    Args:
        kind: of meters, such as ``RowGradients``. factors: of the rows, shape (n,).
    """

    class Weighed(kind):
        def _times_share(self, draw: Draw, row: Tensor, method: Method) -> Draw:
            factor = factors[row].to(draw.coefficient)
            return replace(draw, coefficient=draw.coefficient * factor[:, None, None])

    return Weighed


@dataclass(frozen=True)
class DifferenceProfile:
    """What a probe measured of what draws add to the loss, in the order of the responses.

    >>> from stabledllm.ppots.profile import Profile
    >>> losses = torch.tensor([[[[1.0], [3.0]]], [[[2.0], [2.0]]]]).double()
    >>> probed = Profile(edges=torch.tensor([0.0, 1.0]).double(), view_losses=losses, rows=torch.tensor([1, 0]),
    ...                  used=torch.ones(2, 1, 1, dtype=torch.bool), cost=torch.ones(1).double())
    >>> DifferenceProfile(probed).moments.moment
    tensor([[4.],
            [5.]], dtype=torch.float64)
    """

    probed: Profile
    source: Source | None = None
    """Of the u of a response's own draws; without it they are independent."""
    points: int = 1
    """Draws of t in one replicate, which the source spreads."""
    uniform_share: float = 0.05

    signal = "difference"

    @property
    def order(self) -> Tensor:
        """The probe's rows in the order of the responses: a pair's two stand together."""
        return self.probed.rows.argsort()

    @property
    def values(self) -> Tensor:
        return self.probed.values[self.order]

    @property
    def forward_passes(self) -> int:
        return 2 * self.probed.forward_passes

    @property
    def losses(self) -> LossMoments:
        """The second moments with their parts."""
        return self.probed.moments.select(self.order)

    @cached_property
    def moments(self) -> SecondMoments:
        """The second moments that p is fitted to: for a lattice or strata, what these leave of them.

        A source spreads the draws of each response by itself, so that it averages out most of that response's own
        curve; the rest is the share of it with the least predicted noise.
        """
        losses = self.losses
        if self.source is None or self.source.independent:
            return _second_moments(losses, 1.0)
        return min((_second_moments(losses, share) for share in SHARED), key=self._predicted)

    def _predicted(self, moments: SecondMoments) -> float:
        """The noise of a replicate times its points, under the density that second moments give."""
        losses, t = self.losses, moments.t
        points = optimal_square(moments).sqrt().numpy()
        table = Tabulated(interpolated(t.numpy(), points)).mix_uniform(self.uniform_share)
        own = float((losses.noise * losses.kernels(table)[0]).mean(0) @ losses.width)
        form = shared_forms(t, table, self.source, self.points)[0]
        of_curves = torch.einsum("ab,bc,ac->a", losses.mean, form, losses.mean).mean()
        # The curve of a response is known from a few masks, whose noise is in its square too.
        return own + float(of_curves - form.diagonal() @ losses.noise.mean(0) / losses.masks)

    def curves(self) -> dict[str, Curve | None]:
        """No curve but the second moment."""
        return dict.fromkeys(("g", "v", "v_views", "rho"))


def _second_moments(losses: LossMoments, share: float) -> SecondMoments:
    """``v + share · g²`` of each response, the two of a pair in one fold: all of the second moment for a share of 1."""
    moment = losses.noise + share * (losses.moment - losses.noise)
    return SecondMoments(edges=losses.edges, moment=moment, cost=losses.cost, rate=losses.rate, together=2)
