"""Putting a mistake into the library for the length of one test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


def noticed(check: Callable, *args, match: str | None = None, **kwargs) -> None:
    """The check must raise an AssertionError, for the stated reason."""
    with pytest.raises(AssertionError, match=match):
        check(*args, **kwargs)


def wrap(monkeypatch, owner: object, name: str, change: Callable) -> None:
    """Replace ``owner.name`` by ``change(original result, *args)``, self included for methods."""
    original = getattr(owner, name)
    is_static = isinstance(owner, type) and isinstance(owner.__dict__.get(name), staticmethod)

    def mutated(*args, **kwargs):
        return change(original(*args, **kwargs), *args)

    monkeypatch.setattr(owner, name, staticmethod(mutated) if is_static else mutated)


def scale_coefficient(factor: float) -> Callable:
    """A masker whose coefficients (and weights) are all wrong by a factor."""

    def change(result, *_):
        mask, coefficient, weight = result
        return mask, coefficient * factor, weight * factor

    return change


def scale(factor: float) -> Callable:
    """Anything wrong by a factor."""
    return lambda result, *_: result * factor


def spread(factor: float) -> Callable:
    """Samples whose variance is wrong by a factor, with the mean as it was."""

    def change(samples: torch.Tensor, *_):
        centre = samples.mean(0)
        return centre + (samples - centre) * factor**0.5

    return change
