"""The bound (ELBO) as an estimate of the log-likelihood: a method of this library from a budget of forwards.

Legend: B responses, R replicates, L positions of the longest row, T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.forward.elbo_plan import Plan, make_plan
from stabledllm.likelihood.places import by_position, by_token, counted
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS


@dataclass(frozen=True)
class BoundEstimator:
    """Estimates the ELBO of a response without bias, by a method from a budget of forwards for each response.

    The noise of a response is a function of seed, step and its number: neither the other responses of a batch, nor the
    model change it. A token has the part of the estimate that its own cross-entropies make up, which is 0 where no
    draw masks it.

    Args:
        of_tokens: whether there is a value for each token, of the same draws, else one for each replicate.
        packing: whether the rows of a pass go through the model end to end; the values are the same, up to rounding.

    The others are those of :func:`stabledllm.elbo`.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> rows = [TokenRow([1, 2, 3, 4], prompt_length=1), TokenRow([1, 5], prompt_length=1)]
    >>> whole, tokens = (BoundEstimator(budget=4, of_tokens=each).draw(model, rows, [0, 1], seed=0) for each in (0, 1))
    >>> whole.values(model).shape, tokens.values(model).shape
    (torch.Size([2, 2]), torch.Size([2, 3]))
    >>> torch.allclose(whole.values(model).mean(1), tokens.values(model).sum(1))
    True
    """

    method: str | Method = "lowdisc+fixedcount"
    budget: int = 8
    replicates: int | None = None
    density: TSampler | None = None
    eps: float = EPS
    tokens_per_batch: int = 4096
    of_tokens: bool = False
    packing: bool = False

    def draw(
        self, model, responses: Sequence[TokenRow], numbers: Sequence[int], *, seed: int, step: int = 0
    ) -> BoundDraws:
        """The draws of some responses, of which no forward has been made.

        Args:
            model: policy or reference, of which only the mask token, the blocks and the device are asked.
            numbers: the number of each response, at least 0.

        Raises:
            UserError: as :func:`stabledllm.elbo` does.
        """
        plan = make_plan(
            model, responses, self.method, self.budget, seed=seed, step=step, density=self.density,
            replicates=self.replicates, eps=self.eps, tokens_per_batch=self.tokens_per_batch, mask_id=None, pad_id=None,
            numbers=numbers,
        )  # fmt: skip
        return BoundDraws(replace(plan, packing=self.packing), self.of_tokens)


@dataclass(frozen=True)
class BoundDraws:
    """The draws of some responses: every model that is asked sees the same.

    The values are in nats: each replicate's estimate of each response's ELBO, shape (B, R), or the tokens' parts in the
    mean of the replicates, shape (B, T).

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> draws = BoundEstimator(tokens_per_batch=16).draw(model, [TokenRow([1, 2, 3, 4], 1)], [0], seed=0)
    >>> for part in draws.parts(model, slopes=torch.ones(1, 2)):
    ...     part.backward()
    >>> draws.tokens, draws.passes
    (tensor([3]), 2)
    """

    plan: Plan
    of_tokens: bool = False

    @property
    def tokens(self) -> Tensor:
        """Response tokens of each, shape (B,)."""
        return self.plan.tensors["maskable"].sum(1)

    @property
    def passes(self) -> int:
        """The number of forward passes of each model."""
        return len(self.plan.passes)

    @property
    def forward_rows(self) -> int:
        """Rows that go through each model, in all passes."""
        return self.plan.forward_rows

    @property
    def scored(self) -> Tensor | None:
        """All tokens of each response, shape (B, T), where tokens have values; else None."""
        return counted(self.plan.tensors["maskable"]) if self.of_tokens else None

    @torch.no_grad()
    def values(self, model) -> Tensor:
        """The estimates in nats without a graph: shape (B, R), or of tokens (B, T), 0 behind a response's end."""
        if self.of_tokens:
            return by_token(sum(part for part, _ in self.plan.run_tokens(model)), self.plan.tensors["maskable"])
        return self.plan.groups * sum(part for part, _ in self.plan.run(model))

    def parts(self, model, slopes: Tensor) -> Iterator[Tensor]:
        """Scalars, one for each forward pass, whose gradients add up to that of ``sum(slopes * values)``.

        With a backward after each, one pass's graph is in memory; the gradient is that of the joint one, however the
        loss of the values is curved.

        Args:
            slopes: the derivative of the loss by each of the values, of their shape.
        """
        slopes = slopes.detach()
        if self.of_tokens:
            weights, runs = by_position(slopes, self.plan.tensors["maskable"]), self.plan.run_tokens(model)
        else:
            weights, runs = slopes * self.plan.groups, self.plan.run(model)
        return ((weights.to(part) * part).sum() for part, _ in runs)
