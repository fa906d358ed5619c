"""Two runs are one: the same losses, step by step."""

from __future__ import annotations

import torch

from tests.fakes.trainer import STEPS


def assert_same_trajectory(a: list[float], b: list[float]) -> None:
    """Max deviation 1e-9 relative, and no one-sided drift: the mean residual is far smaller still."""
    assert len(a) == len(b) == STEPS
    residual = torch.tensor(a, dtype=torch.float64) / torch.tensor(b, dtype=torch.float64) - 1
    assert residual.abs().max() < 1e-9
    assert residual.mean().abs() < 1e-10
