"""Checks of the step's mean, shared by the tests and the mutation tests."""

from __future__ import annotations

import torch

from stabledllm import loss as loss_module
from stabledllm.noise.methods import Rows
from stabledllm.noise.objective import Objective


def step_of(n: int) -> Rows:
    """A step of n rows with 2 to 5 maskable tokens."""
    maskable = torch.arange(6)[None] < (torch.arange(n)[:, None] % 4 + 2)
    return Rows(torch.arange(n), n, maskable, torch.arange(6))


STEP = step_of(8)


def check_split(normalization: str, parts: list[int]) -> None:
    """The micro-batches' parts add up to the weighted mean over the whole step, in float64 to 1e-12."""
    loss = torch.linspace(0.1, 3.0, 8, dtype=torch.float64) ** 2
    weight = Objective(normalization=normalization).row_weight(STEP.maskable)
    expected = float((loss * weight).sum() / weight.sum())
    pieces = zip(loss.split(parts), weight.split(parts), strict=True)
    total = sum(float(loss_module.reduce_loss(a, w, weight.sum())) for a, w in pieces)
    assert abs(total - expected) <= 1e-12 * expected, f"step mean {total}, expected {expected}"


def check_dropped_nowhere() -> None:
    """A row with nothing masked counts as 0 in the mean; it is not dropped from the number of rows."""
    loss = torch.tensor([2.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    found = float(loss_module.reduce_loss(loss, torch.ones(4), 4.0))
    assert found == 1.5, f"mean of 2, 0, 0, 4 came out as {found}"
