"""The floor of single views against enumeration, and against densities of every shape."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stabledllm.gradient.floor import gradient_floor
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.ppots.cells import cell_kernels
from tests.checks.statistics import Z
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, conditional, decomposition, panels

COUNTED = Setting(masker="fixedcount", eps=0.1)


@pytest.fixture(scope="module")
def profile():
    return gradient_profile(ToyGradients(), Method.parse("fixedcount"), rows=450, rates=4, masks=3, seed=0)


def by_cell(row, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E|g|² (b,) and E g (b, F) at unit weight, averaged over each cell, by enumeration."""
    square, mean = [], []
    for low, high in itertools.pairwise(edges):
        t, dt = panels(COUNTED.kinks(row.size), low, high)
        first, second = conditional(COUNTED, row, t)
        square.append(dt @ second[:, 1:].sum(1) / (high - low))
        mean.append(dt @ first[:, 1:] / (high - low))
    return np.array(square), np.array(mean)


def test_floors_equal_enumeration(profile):
    kinds, edges = ToyGradients().kinds, profile.edges.numpy()
    width = np.diff(edges)
    square, mean = (np.stack(parts) for parts in zip(*(by_cell(row, edges) for row in kinds), strict=True))
    whole = np.einsum("ibf,b->if", mean, width)
    own = (whole**2).sum(1).mean()
    standard = sum(float(decomposition(Setting(eps=0.1), kinds)[part][1]) for part in "AB")
    data = own - (whole.mean(0) ** 2).sum()
    exact = {
        "shared": (np.sqrt(square.mean(0)) @ width) ** 2 - own,
        "lowdisc": (np.sqrt(square.mean(0) - (mean.mean(0) ** 2).sum(1)) @ width) ** 2 - data,
    }
    found = gradient_floor(profile)
    for name, floor in exact.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - floor / standard) < Z * estimate.stderr, name
        assert estimate.stderr < 0.1 * estimate.value, f"{name}: too vague to fail"
    assert found.own.value < found.shared.value
    assert found.lowdisc.value < found.shared.value


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
