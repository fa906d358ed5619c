"""Noisy rows for trainers that weigh tokens by themselves, whose batches may hold rows with nothing to train on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.integrations.noise import Noise


@dataclass(frozen=True)
class WeightedRows:
    """The rows that go into the model, with the factor of every token's cross-entropy."""

    input_ids: Tensor
    """Token ids with mask tokens, shape (N, L)."""
    mask: Tensor
    """Which positions are masked, bool, shape (N, L)."""
    targets: Tensor
    """The clean ids, shape (N, L)."""
    weights: Tensor
    """Factors of the cross-entropies, 0 where nothing is masked; float64, shape (N, L)."""
    source: Tensor
    """Index of the row that each forward row came from, shape (N,)."""


def weighted_rows(
    noise: Noise,
    input_ids: Tensor,
    maskable: Tensor,
    step: int,
    positions: Tensor,
    step_rows: int,
    step_weight: float | None = None,
) -> WeightedRows:
    """The noise of one micro-batch, in which a row without maskable tokens counts as 0 and is left out.

    Such a row is one whose response was cut off. A micro-batch of nothing else comes back unmasked, so that every rank
    still has its forward pass.

    Args:
        noise, input_ids, maskable, step, positions, step_rows, step_weight: as in
            :meth:`~stabledllm.integrations.Noise.draw`.
    """
    trained = maskable.any(1).nonzero()[:, 0]
    if not len(trained):
        nothing = torch.zeros_like(maskable)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return WeightedRows(input_ids, nothing, input_ids, nothing.double(), rows)
    taken = noise.draw(
        input_ids[trained], maskable[trained], step, positions=positions.to(input_ids.device)[trained],
        step_rows=step_rows, step_weight=step_weight,
    )  # fmt: skip
    return WeightedRows(taken.input_ids, taken.mask, taken.targets, taken.token_weights(), trained[taken.source])


def of_rows(batch: dict, source: Tensor, rows: int) -> dict:
    """A batch whose tensors of ``rows`` rows are taken by index, for views of a row; the rest as it is."""
    return {
        name: value[source] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
        for name, value in batch.items()
    }
