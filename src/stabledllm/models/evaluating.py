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
    modules = [module for module in model.modules() if hasattr(module, "starts_as_trained")]
    with evaluating(model):
        for module in modules:
            module.starts_as_trained = True
        try:
            yield model
        finally:
            for module in modules:
                module.starts_as_trained = False
