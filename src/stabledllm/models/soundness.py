"""Checks that a loaded model gives finite numbers; cheap compared with reading its weights.

Legend: L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.evaluating import evaluating
from stabledllm.models.families.attention import FLEX

_TOKENS = 4


@torch.no_grad()
def check_finite(model: nn.Module, what: str) -> None:
    """Check that no weight is NaN or infinite, in one pass and without a copy.

    Raises:
        UserError: naming the first that is.
    """
    for name, value in model.named_parameters():
        # Weights of one byte per number are left out: they hold whole numbers, or ``aminmax`` does not take them.
        if value.is_floating_point() and value.element_size() > 1 and not _elsewhere(value):
            low, high = value.aminmax()
            if not bool(low.isfinite() & high.isfinite()):
                kind = str(value.dtype).removeprefix("torch.")
                raise UserError(f"{what}: expected finite weights, found NaN or infinity in {name} ({kind}).")


@torch.no_grad()
def check_runs(model: nn.Module, what: str) -> None:
    """Check that a row of a few tokens goes through the model and gives finite logits, in evaluation mode.

    Raises:
        UserError: it does not, for instance where a value of the config makes no sense.
    """
    if any(map(_elsewhere, model.parameters())):
        return
    device = next(model.parameters()).device
    ids = torch.arange(_TOKENS, device=device)[None]
    with (
        evaluating(model),
        _uncompiled(model),
        as_user_error(f"{what}: expected a model that a short row goes through"),
    ):
        logits = model(ids, torch.ones_like(ids), selected=torch.ones_like(ids, dtype=torch.bool)).logits
    if not bool(logits.isfinite().all()):
        raise UserError(f"{what}: expected finite logits of a short row, found NaN or infinity; see its config.json.")


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """SDPA for FlexAttention, which would be compiled first, and for the processor that models are loaded on."""
    flex = getattr(getattr(model, "config", None), "_attn_implementation", None) == FLEX
    if flex:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if flex:
            model.set_attn_implementation(FLEX)


def _elsewhere(weight: torch.Tensor) -> bool:
    """Whether the numbers of a weight are on other ranks only, as where a launch shards weights while they load."""
    return weight.is_meta or not weight.numel()
