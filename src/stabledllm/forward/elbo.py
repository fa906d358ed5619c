"""The variance-reduced, differentiable ELBO of given rows with its standard error, from a budget of forwards.

Legend: B rows, L positions, K views, D draws of t per row, R replicates, E evaluations of one forward pass, M blocks of
a row (1 for models of whole responses).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.forward.elbo_plan import make_plan
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS
from stabledllm.stats.estimate import Estimate, student


@dataclass(frozen=True)
class RowELBO:
    """Unbiased estimates of the ELBO of whole rows in nats, a lower bound of ``log p(response | prompt)``.

    ``per_token()`` is the same per response token; its ``value`` is minus the row loss that training minimises.

    >>> value, stderr, tokens = torch.tensor([-6.0, -8.0]), torch.tensor([3.0, 4.0]), torch.tensor([2, 4])
    >>> bound = RowELBO(value, stderr, tokens, draws=8, replicates=2, forwards=16)
    >>> print(bound.mean)
    -7 ± 2.5 nats (n=2)
    >>> bound.per_token().value
    tensor([-3., -2.])
    """

    value: Tensor
    """Shape (B,), with the gradient of the model's parameters."""
    stderr: Tensor
    """Standard error of each value, from the noise alone, shape (B,), detached.

    It has R - 1 degrees of freedom, so that it is coarse for one row (its square is unbiased); NaN where R = 1.
    """
    tokens: Tensor
    """Response tokens P of each row, shape (B,)."""
    draws: int
    """Number D of mask ratios drawn per row."""
    replicates: int
    """Number R of independent groups that the draws of a row fall into."""
    forwards: int
    """Number of forward rows, over all rows."""
    unit: str = "nats"

    @property
    def mean(self) -> Estimate:
        """The mean over these rows; its error is that of the noise alone, the rows being fixed and not a sample."""
        error = float(self.stderr.square().sum().sqrt()) / len(self.stderr)
        value, freedom = float(self.value.detach().mean()), len(self.stderr) * (self.replicates - 1)
        return Estimate(value=value, stderr=error, n=len(self.stderr), unit=self.unit, freedom=freedom)

    def interval(self) -> tuple[Tensor, Tensor]:
        """The ends of each row's 95 % interval, two of shape (B,): Student's with R - 1 degrees of freedom."""
        half = student(self.replicates - 1) * self.stderr
        return self.value.detach() - half, self.value.detach() + half

    def per_token(self) -> RowELBO:
        """The same estimates divided by P, in nats per response token."""
        return replace(
            self, value=self.value / self.tokens, stderr=self.stderr / self.tokens, unit="nats per response token"
        )


def elbo(
    model,
    rows: Sequence[TokenRow] | Mapping[str, Tensor],
    method: str | Method = "lowdisc+fixedcount",
    budget: int = 8,
    *,
    seed: int = 0,
    step: int = 0,
    density: TSampler | None = None,
    replicates: int | None = None,
    eps: float = EPS,
    tokens_per_batch: int = 4096,
    mask_id: int | None = None,
    pad_id: int | None = None,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> RowELBO:
    """Unbiased, differentiable estimates of the ELBO of each row, from ``budget`` forward rows per row.

    The noise is a pure function of (seed, step, number of the row, index of the draw).

    The D = budget / K mask ratios of one row come from the method's source *within the row*: the points of a lattice or
    of strata are shared out among the row's own D draws, so that 8 forwards of ``lowdisc+fixedcount`` are far less
    noisy than 8 iid ones. Points of one lattice depend on each other and give no standard error. So the D draws are
    split into R independent replicates, and the error is that of their mean. R is D for iid t; else it is 2 for an even
    D of at least 4, and 1 (error NaN) otherwise.

    Two models under one seed and step get the same mask ratios and masks: the noise that they share cancels in their
    difference. In a training loop increase ``step``, or every step gets the same noise::

        def log_ratio(rows):
            with torch.no_grad():
                reference = elbo(frozen, rows, seed=seed, step=step).value
            return elbo(policy, rows, seed=seed, step=step).value - reference

        loss = -F.logsigmoid(beta * (log_ratio(chosen) - log_ratio(rejected))).mean()

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> ids = torch.randint(256, (2, 12))
    >>> everywhere = torch.ones_like(ids, dtype=torch.bool)
    >>> rows = {"input_ids": ids, "attention_mask": everywhere, "maskable": everywhere}
    >>> elbo(model, rows, budget=4).value.shape
    torch.Size([2])

    A model that is trained in blocks gives the bound of decoding block by block: in each of the D draws of a row every
    block has a t and masks of its own, and the D mask ratios of one block are a lattice or strata of their own.

    The model's mode is not changed; dropout would add noise that is not shared. Gradients keep the graphs of all
    forwards in memory: if that is too much, use :func:`elbo_parts`.

    Args:
        model: called as ``model(noisy_ids, attention_mask, selected=mask, targets=ids).nll``, cross-entropies at the
            selected positions in row-major order; with ``config.block_size`` also by ``block_ids=``.
        rows: token rows, or tensors of shape (B, L) named ``input_ids``, ``attention_mask``, ``maskable`` (the response
            tokens) and, for isad-exact, ``delimiter``; padding on either side.
        density: the fitted p(t) of methods with ``ppots``.
        replicates: R; must divide D.
        eps: least masking probability of the objective, in [0, 1). With ``fixedcount`` 0 is the exact bound.
        tokens_per_batch: padded tokens in one forward, in blocks those of both copies of a row.
        mask_id: default ``model.config.mask_token_id``.
        pad_id: fills short token rows and is hidden by the attention mask; default the mask id.
        numbers: the number that stands for each row in its noise, so that a row has the same noise whatever other rows
            are given with it; without it its place in ``rows``.
        progress: called with the forward rows of each forward pass, once it is done.

    Raises:
        UserError: an autoregressive model or method, one that is biased or learns as it is used (``adaptive``,
            ``ema``), a budget that the views or the replicates do not divide, an argument that is no number, a row
            without response tokens or, in blocks, with some that are not next to each other, or no mask id.
    """
    plan = make_plan(
        model, rows, method, budget, seed=seed, step=step, density=density, replicates=replicates, eps=eps,
        tokens_per_batch=tokens_per_batch, mask_id=mask_id, pad_id=pad_id, numbers=numbers,
    )  # fmt: skip
    groups, forwards = 0, 0
    for contribution, used in plan.run(model):
        groups, forwards = groups + contribution, forwards + used
        if progress:
            progress(used)
    # A group holds 1 / R of the mean of its own replicate.
    means = groups.detach() * plan.groups
    error = means.std(1) / plan.groups**0.5 if plan.groups > 1 else torch.full_like(means[:, 0], math.nan)
    tokens = plan.tensors["maskable"].sum(1)
    return RowELBO(groups.sum(1), error, tokens, plan.t.shape[2], plan.groups, forwards)


def elbo_parts(
    model,
    rows: Sequence[TokenRow] | Mapping[str, Tensor],
    method: str | Method = "lowdisc+fixedcount",
    budget: int = 8,
    *,
    seed: int = 0,
    step: int = 0,
    density: TSampler | None = None,
    replicates: int | None = None,
    eps: float = EPS,
    tokens_per_batch: int = 4096,
    mask_id: int | None = None,
    pad_id: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The parts of the ``value`` of :func:`elbo` under the same arguments, shape (B,), one for each forward pass.

    With a backward after each part only one forward's graph is in memory. As the noise is a function of seed and step,
    a loss that is not linear in the values takes two passes::

        with torch.no_grad():
            value = elbo(policy, rows, seed=seed, step=step).value
        slope = torch.func.grad(loss)(value)
        for part in elbo_parts(policy, rows, seed=seed, step=step):
            (slope * part).sum().backward()

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> rows = [TokenRow([1, 2, 3, 4], prompt_length=1)]
    >>> torch.allclose(sum(elbo_parts(model, rows, tokens_per_batch=8)), elbo(model, rows).value)
    True
    """
    plan = make_plan(
        model, rows, method, budget, seed=seed, step=step, density=density, replicates=replicates, eps=eps,
        tokens_per_batch=tokens_per_batch, mask_id=mask_id, pad_id=pad_id, numbers=numbers,
    )  # fmt: skip
    return (contribution.sum(1) for contribution, _ in plan.run(model))
