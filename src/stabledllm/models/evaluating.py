"""Contexts in which a model is in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode; afterwards every module is back in its earlier mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating_as_trained(model: nn.Module) -> Iterator[nn.Module]:
    """The same, but what training predicts in another way is predicted as in training: a block's first token."""
    modes = [(module, module.starts_as_trained) for module in _that_start(model)]
    with evaluating(model):
        for module, _ in modes:
            module.starts_as_trained = True
        try:
            yield model
        finally:
            for module, as_trained in modes:
                module.starts_as_trained = as_trained


@contextmanager
def evaluating_beside(policy: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode in which it predicts as the policy that it is compared with does now."""
    trained = policy.training or any(module.starts_as_trained for module in _that_start(policy))
    with (evaluating_as_trained if trained else evaluating)(model):
        yield model


def _that_start(model: nn.Module) -> list[nn.Module]:
    """The modules that may predict a block's first token in another way than in training."""
    return [module for module in model.modules() if hasattr(module, "starts_as_trained")]
