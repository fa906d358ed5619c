"""A model of two layers, four short rows and their gradients, to try this package's functions on."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.profile import GradientProfile, gradient_profile
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective

_TOKENS, _MASK = 8, 8


class TwoLayers(nn.Module):
    """A model in the form that meters call: an embedding and a head, with the same weights on every machine.

    >>> sum(p.numel() for p in TwoLayers().parameters())
    68
    """

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(_TOKENS + 1, 4), nn.Linear(4, _TOKENS, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.arange(weight.numel()).view_as(weight).sin())

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.head

    def forward(
        self, ids: Tensor, attention_mask: Tensor, *, selected: Tensor, targets: Tensor, block_ids: Tensor | None = None
    ) -> SimpleNamespace:
        """The cross-entropies at the selected positions, as ``nll``; a token sees itself alone, whatever the blocks."""
        return SimpleNamespace(
            nll=F.cross_entropy(self.head(self.embedding(ids))[selected], targets[selected], reduction="none")
        )


def example_meter(kind: type = RowGradients, **further):
    """A meter of that kind with ``further`` arguments, on four rows of prompts of one token, responses of two to four.

    >>> len(example_meter().rows)
    4
    """
    rows = [TokenRow([0, *response], 1) for response in ([1, 2], [3, 4, 5], [6, 7, 1, 2], [5, 3, 3])]
    return kind(MeteredModel(TwoLayers(), _MASK, pad_id=0), rows, Objective(), **further)


@lru_cache
def example_profile(method: str = "fixedcount") -> GradientProfile:
    """The gradients of those rows, in four cells of t, under a method.

    >>> example_profile().rows.sort().values
    tensor([0, 1, 2, 3])
    """
    return gradient_profile(example_meter(), Method.parse(method), rows=4, rates=4, masks=2, seed=0)


@lru_cache
def example_nested():
    """The gradients of those rows at several masks of the same counts.

    >>> example_nested().targets.shape
    torch.Size([1, 4])
    """
    from stabledllm.gradient.nested_masks import nested_masks

    return nested_masks(example_meter(), example_profile(), seed=0)


@lru_cache
def example_in_blocks():
    """The noise of the single blocks of two tokens of those rows, and the rows nested, one t for a row's blocks.

    >>> units, rows = example_in_blocks()
    >>> units.rate.shape, rows.rate_noise.shape
    (torch.Size([1, 7]), torch.Size([1, 4]))
    """
    from stabledllm.gradient.block_components import unit_noise
    from stabledllm.gradient.blocks import BlockRowGradients, UnitRowGradients
    from stabledllm.gradient.nested_rows import nested_rows

    counts, meter = Method.parse("fixedcount"), example_meter(UnitRowGradients, block_size=2)
    units = unit_noise(meter, counts, rows=7, rates=2, masks=2, seed=0)
    whole = example_meter(BlockRowGradients, block_size=2)
    return units, nested_rows(whole, Method(), rows=4, rates=2, seed=0, one_t=True)
