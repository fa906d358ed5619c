"""Whether a loaded model can give numbers at all; cheap beside reading its weights.

Legend: L positions.
"""

from __future__ import annotations

import torch
from torch import nn

from stabledllm.errors import UserError
from stabledllm.models.evaluating import evaluating
from stabledllm.models.told import told

_TOKENS = 4


@torch.no_grad()
def check_finite(model: nn.Module, what: str) -> None:
    """No weight is NaN or infinite: one pass over them, nothing is copied.

    Raises:
        UserError: naming the first that is.
    """
    for name, value in model.named_parameters():
        # One byte a number: 8-bit weights, which hold whole numbers or have no such check.
        if value.is_floating_point() and value.element_size() > 1 and not _elsewhere(value):
            low, high = value.aminmax()
            if not bool(low.isfinite() & high.isfinite()):
                kind = str(value.dtype).removeprefix("torch.")
                raise UserError(f"{what}: expected finite weights, found NaN or infinity in {name} ({kind}).")


@torch.no_grad()
def check_runs(model: nn.Module, what: str) -> None:
    """A row of a few tokens goes through it and gives finite logits, in evaluation mode.

    Raises:
        UserError: it does not, as where a value of the config makes no sense.
    """
    if any(map(_elsewhere, model.parameters())):
        return
    device = next(model.parameters()).device
    ids = torch.arange(_TOKENS, device=device)[None]
    with evaluating(model), told(f"{what}: expected a model that a short row goes through"):
        logits = model(ids, torch.ones_like(ids), selected=torch.ones_like(ids, dtype=torch.bool)).logits
    if not bool(logits.isfinite().all()):
        raise UserError(f"{what}: expected finite logits of a short row, found NaN or infinity; see its config.json.")


def _elsewhere(weight: torch.Tensor) -> bool:
    """Whether its numbers are on other ranks only, as where a launch configuration shards weights while they load."""
    return weight.is_meta or not weight.numel()
