"""Likelihoods from random orders: the sum of a response's log-probabilities as its tokens are shown one by one.

One order gives an estimate of the ELBO. Several give a tighter bound (their log-mean-exp, Burda et al.,
arXiv:1509.00519), and with one half bounding the other a bound from above (TUBE, arXiv:2605.24292). Showing several
tokens at once takes fewer forwards (StepMerge of d2, arXiv:2509.21474).

A model that is trained in blocks has an order in each block, and a forward shows one more token in all blocks at once;
its log-likelihood is the sum over blocks, and so are its bounds.

Legend: B responses, L positions, M blocks of a response (1 for whole responses), K orders, N forwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.meter import filled_batches
from stabledllm.likelihood.responses import Responses
from stabledllm.noise.views import Single
from stabledllm.runtime.finite import require_finite


@dataclass
class OrderScores:
    """Scores responses in random orders, which are functions of seed, step, the response's number and the order's.

    Make it with :meth:`of`. ``forwards`` counts the rows that went through the model, those of guidance too.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> scores = OrderScores.of(model, [TokenRow([1, 2, 3, 4], 1), TokenRow([1, 5], 1)], [0, 1], seed=0)
    >>> logs = scores.orders(range(4))
    >>> logs.shape, scores.forwards
    (torch.Size([2, 1, 4]), 16)
    >>> bool((log_mean(logs) >= logs.mean(-1).sum(-1)).all())
    True
    """

    model: object
    given: Responses
    guidance: float = 0.0
    tokens_per_forward: int = 4096
    forwards: int = field(default=0, init=False)

    @classmethod
    def of(
        cls,
        model,
        rows: Sequence[TokenRow],
        numbers: Sequence[int],
        *,
        seed: int,
        step: int = 0,
        guidance: float = 0.0,
        tokens_per_forward: int = 4096,
    ) -> OrderScores:
        """Responses of token rows; ``numbers`` as for :meth:`Responses.of`, which raises what this raises.

        Args:
            guidance: strength of classifier-free guidance: logits are ``(1 + guidance) conditional - guidance
                unconditional``, the prompt masked in the latter, as in decoding; twice the forwards.

        Raises:
            UserError: guidance with a model in blocks, too.
        """
        cls.check(model, guidance)
        given = Responses.of(model, rows, numbers, seed=seed, step=step)
        return cls(model, given, guidance, tokens_per_forward)

    @staticmethod
    def check(model, guidance: float) -> None:
        """Refuse guidance with a model in blocks.

        Raises:
            UserError: both are given.
        """
        if guidance and getattr(model.config, "block_size", None):
            raise UserError(
                f"decoding.guidance: expected 0 for likelihoods of a model in blocks other than 'duel', found "
                f"{guidance:g}."
            )

    def orders(self, numbers: Sequence[int]) -> Tensor:
        """The log-probability of each block in each of K orders, nats, float64, shape (B, M, K), 0 where a row has
        fewer blocks.

        The mean over orders of its exponential is the probability of the block after those before it, so the sum of
        its mean over orders is the ELBO. A response of P tokens takes P forwards for each order, in blocks as many as
        its longest block has tokens.

        Args:
            numbers: the number of each order.
        """
        block, count = self._blocks()
        ranks = torch.stack([self._ranks(number, block) for number in numbers], 1)
        logs = self._shown_in(ranks, block)
        where = block.clamp(min=0)[:, None].expand_as(logs)
        sums = logs.new_zeros(*logs.shape[:2], count).scatter_add(2, where, logs)
        return sums.transpose(1, 2).cpu()

    def merged(self, numbers: Sequence[int], segments: int) -> Tensor:
        """The log-probability in each of K orders shown in ``segments`` steps, nats, float64, shape (B, K).

        The tokens of a step are scored from what is shown before it, each by itself. In each block the steps are as
        even as they can be, larger ones first. A response takes a forward for each step; with a step for each token
        the value is that of :meth:`orders`. Its mean over orders is the ELBO of the sampler that decides so many
        tokens at once, and a lower bound of that sampler's log-likelihood.
        """
        block, count = self._blocks()
        size = torch.zeros(len(block), count, dtype=torch.long, device=block.device)
        size = size.scatter_add(1, block.clamp(min=0), (block >= 0).long()).gather(1, block.clamp(min=0))
        least, larger = size // segments, size % segments
        before, steps = larger * (least + 1), []
        for number in numbers:
            rank = self._ranks(number, block)
            rest = larger + (rank - before) // least.clamp(min=1)
            steps.append(torch.where(rank < before, rank // (least + 1), rest))
        return self._shown_in(torch.stack(steps, 1), block).sum(2).cpu()

    def counts(self, numbers: Sequence[int], strata: int) -> Tensor:
        """An estimate of the ELBO from each of D masks of an exact count, nats, float64, shape (B, D).

        The mask ratio of draw d is uniform in stratum ``d % strata`` of [0, 1], so that the mean over ``strata`` draws
        is less noisy and unbiased: each takes one forward.

        Raises:
            UserError: a model in blocks, of which :func:`stabledllm.elbo` gives the bound.
        """
        if self.given.blocks:
            raise UserError("elbo of counts: expected a model of whole responses, found one in blocks.")
        size = self.given.size
        ratios = [(number % strata + self.given.uniform(number)) / strata for number in numbers]
        counts = [(ratio * size).ceil().long().clamp(min=1) for ratio in ratios]
        masks = [self.given.first(count, number) for count, number in zip(counts, numbers, strict=True)]
        step = torch.stack(masks, 1).long()  # 0 for what is shown, 1 for what is hidden and scored
        row, draw = torch.ones_like(step[..., 0]).nonzero().unbind(1)
        logs = self._scores(step, row, draw, torch.ones_like(row)).sum(2)
        return (logs * size[:, None] / torch.stack(counts, 1)).cpu()

    def _blocks(self) -> tuple[Tensor, int]:
        """The block of each response token, from 0, -1 elsewhere, int64, shape (B, L); and M."""
        maskable, blocks = self.given.maskable, self.given.blocks
        if not blocks:
            return maskable.long() - 1, 1
        ids = blocks.ids(maskable, self.given.tensors["attention_mask"])
        first = ids.masked_fill(~maskable, ids.max() + 1).amin(1, keepdim=True)
        block = (ids - first).masked_fill(~maskable, -1)
        return block, int(block.max()) + 1

    def _ranks(self, number: int, block: Tensor) -> Tensor:
        """The place of each response token in a random order of its block, from 0, int64, shape (B, L)."""
        maskable, count = self.given.maskable, int(block.max()) + 1
        in_turn = (block + self.given.uniforms(number)) / count  # below 1, as ranks take them
        whole = Single().ranks(in_turn[:, None], maskable)[:, 0]
        start = torch.where(maskable, whole, whole.shape[1])
        first = start.new_full((len(block), count), whole.shape[1])
        first = first.scatter_reduce(1, block.clamp(min=0), start, "amin")
        return whole - first.gather(1, block.clamp(min=0))

    def _shown_in(self, step: Tensor, block: Tensor) -> Tensor:
        """The log-probability of each response token from what earlier steps of each order show, shape (B, K, L)."""
        step = step.masked_fill((block < 0)[:, None], -1)
        steps = step.amax(2).flatten() + 1  # those of a row's longest block
        pair = torch.arange(len(steps), device=step.device).repeat_interleave(steps)
        at = torch.arange(len(pair), device=step.device) - (steps.cumsum(0) - steps)[pair]
        return self._scores(step, pair // step.shape[1], pair % step.shape[1], at)

    @torch.no_grad()
    def _scores(self, step: Tensor, row: Tensor, order: Tensor, at: Tensor) -> Tensor:
        """The log-probabilities of tokens at their steps, float64, shape (B, K, L), 0 where there is no forward.

        Args:
            step: of each token in each order, shape (B, K, L); those of a later step are hidden, too.
            row, order, at: of each forward, shape (N,): its response, its order and its step.
        """
        tensors, copies = self.given.tensors, 2 if self.given.blocks or self.guidance else 1
        length = copies * tensors["attention_mask"].sum(1)
        out = torch.zeros(step.shape, dtype=torch.float64, device=step.device)
        for chunk in filled_batches(length[row], 1, self.tokens_per_forward):
            taken, own = row[chunk], order[chunk]
            used = tensors["attention_mask"][taken].any(0)
            ids, attention, maskable = (
                tensors[name][taken][:, used] for name in ("input_ids", "attention_mask", "maskable")
            )
            steps, now = step[taken, own][:, used], at[chunk][:, None]
            scored = maskable & (steps == now)
            logs = self._forward(ids, attention, maskable, maskable & (steps >= now), scored)
            each, place = scored.nonzero().unbind(1)
            out[taken[each], own[each], used.nonzero()[place, 0]] = logs.double()
        require_finite(out, f"log-probabilities of {type(self.model).__name__}")
        return out

    def _forward(self, ids: Tensor, attention: Tensor, maskable: Tensor, hidden: Tensor, scored: Tensor) -> Tensor:
        """The log-probabilities at the scored positions of the rows of one forward, row-major."""
        noisy, given = ids.masked_fill(hidden, self.given.mask_id), self.given
        self.forwards += len(ids) * (2 if self.guidance else 1)
        if not self.guidance:
            form = {"block_ids": given.blocks.ids(maskable, attention)} if given.blocks else {}
            return -self.model(noisy, attention, selected=scored, targets=ids, **form).nll
        prompt = attention & (maskable.cumsum(1) == 0)
        rows = torch.cat((noisy, noisy.masked_fill(prompt, given.mask_id)))
        logits = self.model(rows, attention.repeat(2, 1), selected=scored.repeat(2, 1)).logits
        conditional, unconditional = logits.chunk(2)
        guided = unconditional + (1 + self.guidance) * (conditional - unconditional)
        return guided.log_softmax(-1).gather(1, ids[scored][:, None])[:, 0]


def log_mean(logs: Tensor) -> Tensor:
    """The multi-sample bound from K orders: the log of their mean probability, added up over blocks; shape (B,).

    Its mean rises with K from the ELBO (K = 1) to the log-likelihood, and never exceeds it.

    Args:
        logs: of :meth:`OrderScores.orders`, shape (B, M, K).

    >>> log_mean(torch.tensor([[[0.25, 0.75]]]).log()).exp()
    tensor([0.5000])
    """
    return (logs.logsumexp(-1) - math.log(logs.shape[-1])).sum(-1)


def tangent(logs: Tensor) -> Tensor:
    """TUBE: ``log psi + p / psi - 1``, added up over blocks, whose mean is never below the log-likelihood; shape (B,).

    psi follows from one half of the orders and p is the mean probability of the other; the mean of both ways is taken.
    It is heavy-tailed where orders differ by many nats: trust it where :func:`effective_orders` is near K.

    Args:
        logs: of :meth:`OrderScores.orders`, shape (B, M, K), K even.

    >>> tangent(torch.tensor([[[0.5, 0.5]]]).log()).exp()
    tensor([0.5000])

    Raises:
        NotFinite: orders that lie so far apart that the bound overflows.
    """
    half = logs.shape[-1] // 2
    one, other = logs[..., :half], logs[..., half:]
    found = 0
    for given, drawn in ((one, other), (other, one)):
        log_psi = _log_psi(given)
        found = found + log_psi + (drawn.logsumexp(-1) - math.log(half) - log_psi).exp() - 1
    found = (found / 2).sum(-1)
    require_finite(found, "tube: bounds of orders that lie hundreds of nats apart; of")
    return found


def _log_psi(logs: Tensor) -> Tensor:
    """The log of the psi that some orders propose, float64, shape (B, M): their mean probability times a factor.

    The factor is the one for which the tangent at the mean of all orders but one would have bounded that one best, on
    average over them; it keeps a single order that outweighs the others from deciding the bound.
    """
    count = logs.shape[-1]
    mean = logs.logsumexp(-1) - math.log(count)
    if count == 1:
        return mean
    itself = torch.eye(count, dtype=torch.bool, device=logs.device)
    others = logs[..., None, :].masked_fill(itself, -torch.inf).logsumexp(-1) - math.log(count - 1)
    return mean + (logs - others).logsumexp(-1) - math.log(count)


def effective_orders(logs: Tensor) -> Tensor:
    """Kish's effective number of K orders, the least over a response's blocks, from 1 to K; shape (B,).

    >>> effective_orders(torch.tensor([[[0.5, 0.5], [1.0, 0.5]]]).log())
    tensor([1.8000])
    """
    return (2 * logs.logsumexp(-1) - (2 * logs).logsumexp(-1)).exp().amin(-1)
