"""Responses as tensors, with the random numbers that belong to each: what an estimator of one's own begins with.

Legend: B responses, L positions of the longest row, K views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.elbo_arguments import (
    check_numbers,
    checked_blocks,
    checked_mask_id,
    checked_numbers,
    checked_rows,
)
from stabledllm.likelihood.views import ViewDraws
from stabledllm.noise.blocks import Blocks
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.views import Single


@dataclass(frozen=True)
class Responses:
    """Responses of one call of an estimator, and what is random about each.

    Every random number is a function of seed, step, the response's number, the draw's and, where it is a token's, of
    the token's place in its row: neither the other responses nor the padding change it.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> rows = [TokenRow([1, 2, 3, 4], prompt_length=1), TokenRow([1, 5], prompt_length=1)]
    >>> given = Responses.of(model, rows, [0, 1], seed=0)
    >>> given.first(torch.tensor([2, 1])).sum(1)  # two tokens of the one, one of the other
    tensor([2, 1])
    """

    tensors: dict[str, Tensor]
    """``input_ids``, ``attention_mask`` and ``maskable`` (the tokens of the responses), each (B, L)."""
    number: Tensor
    """The number that stands for each response in its noise, int64, shape (B,)."""
    key: Key
    mask_id: int
    blocks: Blocks | None
    """The blocks of a model that is trained in them; None for one that sees whole responses."""

    @classmethod
    def of(cls, model, responses: Sequence[TokenRow], numbers: Sequence[int], *, seed: int, step: int = 0) -> Responses:
        """The responses on the model's device.

        Raises:
            UserError: no responses or an empty one, not another number for each, an autoregressive model, or one
                without a mask token.
        """
        check_numbers(seed=seed, step=step)
        mask_id, device = checked_mask_id(model, None), next(model.parameters()).device
        tensors = checked_rows(responses, Method(), mask_id, mask_id)
        tensors = {name: tensors[name].to(device) for name in ("input_ids", "attention_mask", "maskable")}
        number = torch.tensor(checked_numbers(numbers, len(tensors["maskable"])), device=device)
        return cls(tensors, number, Key(seed, step), mask_id, checked_blocks(model, tensors["maskable"])[0])

    @property
    def maskable(self) -> Tensor:
        """The tokens of the responses, bool, shape (B, L)."""
        return self.tensors["maskable"]

    @property
    def prompt(self) -> Tensor:
        """The tokens before each response, bool, shape (B, L)."""
        return self.tensors["attention_mask"] & (self.maskable.cumsum(1) == 0)

    @property
    def size(self) -> Tensor:
        """The number of tokens of each response, int64, shape (B,)."""
        return self.maskable.sum(1)

    def uniform(self, draw: int = 0) -> Tensor:
        """One uniform number in (0, 1) for each response, float64, shape (B,)."""
        return self.key.row_uniforms(Stream.RATE, self.number, draw)

    def uniforms(self, draw: int = 0) -> Tensor:
        """One uniform number in (0, 1) for each token, prompts and padding included; float64, shape (B, L)."""
        index = (self.tensors["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return self.key.token_uniforms(Stream.MASK, self.number, index, draw)

    def first(self, count: Tensor, draw: int = 0) -> Tensor:
        """The first ``count``, shape (B,), tokens of each response in a random order, bool, shape (B, L)."""
        rank = Single().ranks(self.uniforms(draw)[:, None], self.maskable)[:, 0]
        return (rank < count[:, None]) & self.maskable

    def draws(
        self,
        masks: Sequence[Tensor],
        weights: Sequence[Tensor | float],
        *,
        of_tokens: bool,
        tokens_per_forward: int,
        packing: bool = False,
    ) -> ViewDraws:
        """The draws of K views.

        Args:
            masks: the tokens that each view hides, K of shape (B, L), of prompts too.
            weights: the factor of each hidden response token's log-probability, K of shape (B, L) or (B, 1), or
                numbers.
            packing: whether the rows of a pass go through the model end to end.

        Raises:
            UserError: a hidden prompt token with a model in blocks, which see their prompt as it is.
        """
        mask = torch.stack(list(masks), 1)
        if self.blocks and bool((mask & ~self.maskable[:, None]).any()):
            raise UserError(
                f"estimator: expected masks of response tokens alone for a model in blocks of {self.blocks.size} "
                f"tokens, found masks of the prompt too."
            )
        each = [torch.as_tensor(w, dtype=torch.float64, device=mask.device).expand(mask[:, 0].shape) for w in weights]
        weight = torch.stack(each, 1)
        weight = torch.where(mask & self.maskable[:, None], weight, 0.0)
        return ViewDraws(self.tensors, mask, weight, self.mask_id, self.blocks, of_tokens, tokens_per_forward, packing)
