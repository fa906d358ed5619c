"""The floor of single views against enumeration, and against densities of every shape."""

from __future__ import annotations

import pytest
import torch

from stabledllm.gradient.floor import gradient_floor
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.ppots.cells import cell_kernels
from tests.checks.gradients import assert_floors
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting


@pytest.fixture(scope="module")
def profile():
    return gradient_profile(ToyGradients(), Method.parse("fixedcount"), rows=450, rates=4, masks=3, seed=0)


def test_floors_equal_enumeration(profile):
    found = gradient_floor(profile)
    assert_floors(found, Setting(eps=0.1), ToyGradients().kinds, profile.edges.numpy())
    assert found.own.value < found.shared.value
    assert found.lowdisc.value < found.shared.value


@pytest.mark.parametrize("rates", [1, 2])
def test_the_floor_of_each_row_is_right_where_roots_are_noisy(rates):
    """Two masks a cell: plain roots are low by 7 and 13 %, and squares of the corrected ones high by 22 and 7 %."""
    noisy = gradient_profile(ToyGradients(), Method.parse("fixedcount"), rows=900, rates=rates, masks=2, seed=0)
    assert_floors(gradient_floor(noisy), Setting(eps=0.1), ToyGradients().kinds, noisy.edges.numpy())


@pytest.mark.parametrize("heights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 4.0, 1.0), (0.2, 1.0, 5.0)])
def test_no_density_is_below_the_floor(profile, heights):
    square = profile.squares().sum((0, 1)) / len(profile.rows)
    cells = torch.zeros(len(profile.width), dtype=torch.float64).index_add_(0, profile.cell, square)
    cells = cells / profile.cell.bincount()
    least = float(cells.sqrt() @ profile.width) ** 2
    density = Tabulated(torch.tensor(heights, dtype=torch.float64)) if len(heights) > 2 else Uniform()
    cost = float(cells * profile.width @ cell_kernels(density, profile.edges)[0])
    assert cost >= least * (1 - 1e-12)
    best = Tabulated(_on_grid(cells.sqrt(), profile.edges))
    assert float(cells * profile.width @ cell_kernels(best, profile.edges)[0]) == pytest.approx(least, rel=1e-2)


def _on_grid(values: torch.Tensor, edges: torch.Tensor, cells: int = 4096) -> torch.Tensor:
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return values[(torch.searchsorted(edges, middle) - 1).clamp(0, len(values) - 1)]
