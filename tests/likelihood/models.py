"""A model with random logits, responses of it, and its joint gradient: what tests of estimators share."""

from __future__ import annotations

import torch

from stabledllm.data.rows import TokenRow
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

MASK = 9
ROWS = [
    TokenRow([3, 1, 4, 1, 5], prompt_length=2),
    TokenRow([2, 7, 1], prompt_length=1),
    TokenRow([5, 5, 1, 8, 2, 6], prompt_length=2),
]


def tiny(seed: int = 0, **config: int) -> TinyMDM:
    """A model of 12 tokens in float64, whose answers are far from uniform."""
    torch.manual_seed(seed)
    return TinyMDM(TinyMDMConfig(12, 8, 1, 2, 16, mask_token_id=MASK, initializer_range=0.5, **config)).double().eval()


def gradient_of_parts(model, draws, slopes: torch.Tensor) -> torch.Tensor:
    """The gradient of ``sum(slopes * values)``, with a backward after each forward."""
    model.zero_grad()
    for part in draws.parts(model, slopes):
        part.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_by_differences(model, draws, slopes: torch.Tensor, along: torch.Tensor, step: float = 1e-5) -> float:
    """The derivative of ``sum(slopes * values)`` along a direction of the parameters, from values alone."""
    found = []
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * step * along, model.parameters())
        found.append(float((slopes * draws.values(model)).sum()))
    torch.nn.utils.vector_to_parameters(start, model.parameters())
    return (found[0] - found[1]) / (2 * step)
