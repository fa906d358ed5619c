"""Views of responses, each with a weight for every token that it hides: any estimate of a log-likelihood in use.

Legend: B responses, K views, L positions of the longest row, T tokens of the longest response, E views of one forward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.forward.meter import filled_batches
from stabledllm.forward.nll import forward_nll
from stabledllm.likelihood.places import by_position, by_token
from stabledllm.loss import token_losses
from stabledllm.noise.blocks import Blocks
from stabledllm.noise.methods import Draw
from stabledllm.runtime.finite import require_finite


@dataclass(frozen=True)
class ViewDraws:
    """Views of some responses: the value of one is the weighted sum of its hidden tokens' log-probabilities, in nats.

    Values are those of responses, shape (B, 1), or of their tokens, (B, T), in which tokens that no view hides are not
    scored. A view in which nothing has a weight makes no forward. Make it with :meth:`Responses.draws`.

    >>> from stabledllm.data.rows import TokenRow
    >>> from stabledllm.likelihood.responses import Responses
    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> given = Responses.of(model, [TokenRow([1, 2, 3, 4], 1)], [0], seed=0)
    >>> one, rest = given.first(torch.tensor([1])), given.maskable & ~given.first(torch.tensor([1]))
    >>> weight = torch.ones(1, 1)
    >>> views = given.draws([one, rest], [weight, weight], of_tokens=True, tokens_per_forward=100)
    >>> views.forward_rows, views.scored, views.values(model).shape
    (2, tensor([[True, True, True]]), torch.Size([1, 3]))
    """

    tensors: dict[str, Tensor]
    """``input_ids``, ``attention_mask`` and ``maskable`` (the tokens of the responses), each (B, L)."""
    mask: Tensor
    """The tokens that each view hides, bool, shape (B, K, L)."""
    weight: Tensor
    """The factor of each log-probability, float64, shape (B, K, L); 0 but at hidden tokens of the responses."""
    mask_id: int
    blocks: Blocks | None
    of_tokens: bool
    tokens_per_forward: int
    packing: bool = False

    @property
    def tokens(self) -> Tensor:
        """Response tokens of each, shape (B,)."""
        return self.tensors["maskable"].sum(1)

    @cached_property
    def _active(self) -> Tensor:
        """Response and view of each forward row, shape (rows, 2)."""
        return (self.weight != 0).any(2).nonzero()

    @property
    def forward_rows(self) -> int:
        """Rows that go through each model, in all passes."""
        return len(self._active)

    @cached_property
    def _chunks(self) -> list[Tensor]:
        """The forward rows of each pass; a pass without any where there is none at all."""
        copies = 2 if self.blocks else 1  # the clean row beside the noisy one
        length = copies * self.tensors["attention_mask"].sum(1)[self._active[:, 0]]
        return list(filled_batches(length, 1, self.tokens_per_forward)) or [torch.arange(0, device=length.device)]

    @property
    def passes(self) -> int:
        """The number of forward passes of each model, at least 1."""
        return len(self._chunks)

    @property
    def scored(self) -> Tensor | None:
        """The tokens that some view hides, bool, shape (B, T), where tokens have values; else None."""
        if not self.of_tokens:
            return None
        return by_token(self.mask.any(1) & self.tensors["maskable"], self.tensors["maskable"])

    @torch.no_grad()
    def values(self, model) -> Tensor:
        """The estimates in nats without a graph: shape (B, 1), or of tokens (B, T)."""
        found = sum(self._run(model))
        return by_token(found, self.tensors["maskable"]) if self.of_tokens else found.sum(1, keepdim=True)

    def parts(self, model, slopes: Tensor) -> Iterator[Tensor]:
        """Scalars, one for each forward pass, whose gradients add up to that of ``sum(slopes * values)``.

        With a backward after each, one pass's graph is in memory; the gradient is that of the joint one.

        Args:
            slopes: the derivative of the loss by each of the values, of their shape.
        """
        slopes = slopes.detach()
        by_place = by_position(slopes, self.tensors["maskable"]) if self.of_tokens else slopes
        return ((by_place.to(part) * part).sum() for part in self._run(model))

    def _run(self, model) -> Iterator[Tensor]:
        """Yield, per forward pass, what it adds to the value of each position, shape (B, L)."""
        for chunk in self._chunks:
            row, view = self._active[chunk].unbind(1)
            # Without forward rows the model still runs, on a row of which nothing counts: those of other ranks do.
            used = self.tensors["attention_mask"][row].any(0) if len(row) else self.tensors["attention_mask"].any(0)
            taken = row if len(row) else row.new_zeros(1)
            batch = {name: value[taken][:, used] for name, value in self.tensors.items()}
            draw = self._draw(row, view, used) if len(row) else self._nothing(used)
            form = {"block_ids": self.blocks.ids(batch["maskable"], batch["attention_mask"])} if self.blocks else {}
            nll, _ = forward_nll(model, batch, draw, self.mask_id, form=form, packing=self.packing)
            each = -token_losses(nll, draw.mask, draw.coefficient, draw.active).sum(1)
            require_finite(each, f"log-probabilities of {type(model).__name__}")
            whole = each.new_zeros(len(taken), len(used)).index_copy(1, used.nonzero()[:, 0], each)
            yield each.new_zeros(self.tensors["maskable"].shape).index_add(0, taken, whole)

    def _draw(self, row: Tensor, view: Tensor, used: Tensor) -> Draw:
        """The views of one forward pass, each as the single view of a row."""
        one = torch.ones(len(row), dtype=torch.float64, device=row.device)
        mask, weight = (values[row, view][:, None, used] for values in (self.mask, self.weight))
        return Draw(one, one, mask, weight, torch.ones_like(mask[..., 0]))

    def _nothing(self, used: Tensor) -> Draw:
        """A view of one row that hides nothing."""
        one = torch.ones(1, dtype=torch.float64, device=used.device)
        mask = torch.zeros(1, 1, int(used.sum()), dtype=torch.bool, device=used.device)
        return Draw(one, one, mask, mask.double(), torch.ones_like(mask[..., 0]))
