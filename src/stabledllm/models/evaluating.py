"""Contexts in which a model is in evaluation mode, or in that mode in the form that it is trained in."""

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
def as_trained(model: nn.Module) -> Iterator[nn.Module]:
    """Let a model in evaluation mode predict what it predicts in training, wherever the two differ.

    They differ in what predicts a block's first token where logits are shifted (``block_start``). What is measured
    for training is measured in its form; what is evaluated, in that of decoding.
    """
    parts = [module for module in model.modules() if hasattr(module, "as_trained")]
    before = [module.as_trained for module in parts]
    for module in parts:
        module.as_trained = True
    try:
        yield model
    finally:
        for module, value in zip(parts, before, strict=True):
            module.as_trained = value
