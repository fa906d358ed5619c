"""Steps of the toy model that are really drawn, and the parts of its gradients' noise by enumeration."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stabledllm.gradient.floor import GradientFloor
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from tests.checks.statistics import Z
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, ToyRow, conditional, panels


@functools.cache
def uniforms_of(source, n: int, steps: int) -> torch.Tensor:
    """The u of every row of many steps, drawn once for all methods of a source."""
    return torch.cat([source.uniforms(Key(5, s), n, torch.device("cpu")) for s in range(steps)])


def drawn(method: Method, sampler, n: int, steps: int, meter: ToyGradients) -> tuple[float, float]:
    """n tr Var of really drawn steps, and its error over 20 groups of steps."""
    key, rows = Key(99, 1), n * steps
    index = (key.row_uniforms(Stream.RESAMPLE, torch.arange(rows)) * len(meter.rows)).long()
    u = uniforms_of(method.source, n, steps)
    ((_, _, g, _),) = meter.gradients(index, sampler.icdf(u), method, Key(7, 7), sampler)
    step = g.view(20, steps // 20, n, -1).mean(2)
    each = n * step.var(1).sum(-1)
    return float(each.mean()), float(each.std()) / 20**0.5


def exact_noise(setting: Setting, kinds: list[ToyRow], share: np.ndarray | None = None) -> dict[str, float]:
    """A, B and C as traces over rows of every kind equally often, their gradients times their shares.

    They are those of the setting's own masks and density.
    """
    share = np.ones(len(kinds)) if share is None else share
    parts = {"A": [], "B": [], "h": []}
    for row in kinds:
        t, dt = panels(setting.kinks(row.size), 0.0, 1.0)
        dt = dt * setting.p(t)
        mean, square = (x[:, 1:] for x in conditional(setting, row, t))
        whole = dt @ mean
        parts["A"].append((dt @ (square - mean**2)).sum())
        parts["B"].append((dt @ mean**2 - whole**2).sum())
        parts["h"].append(whole)
    h = np.array(parts["h"])
    spread = share[:, None] * (h - (share[:, None] * h).mean(0) / share.mean())
    return {"A": (share**2 * parts["A"]).mean(), "B": (share**2 * parts["B"]).mean(), "C": (spread**2).sum(1).mean()}


def by_cell(setting: Setting, kinds: list[ToyRow], edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E|g|² (rows, b) and E g (rows, b, F) at unit weight, averaged over each cell of t, by enumeration."""
    square, mean = [], []
    for row, (low, high) in itertools.product(kinds, itertools.pairwise(edges)):
        t, dt = panels(setting.kinks(row.size), low, high)
        first, second = conditional(setting, row, t)
        square.append(dt @ second[:, 1:].sum(1) / (high - low))
        mean.append(dt @ first[:, 1:] / (high - low))
    shape = len(kinds), len(edges) - 1
    return np.array(square).reshape(shape), np.array(mean).reshape(*shape, -1)


def exact_floors(setting: Setting, kinds: Sequence[ToyRow], edges: np.ndarray) -> dict[str, float]:
    """The floors over Standard's noise, those of fixed counts with densities that are constant in the cells."""
    width = np.diff(edges)
    square, mean = by_cell(replace(setting, masker="fixedcount"), kinds, edges)
    whole = np.einsum("ibf,b->if", mean, width)
    each = (whole**2).sum(1)
    data = each.mean() - (whole.mean(0) ** 2).sum()
    truth = exact_noise(setting, kinds)
    exact = {
        "shared": (np.sqrt(square.mean(0)) @ width) ** 2 - each.mean(),
        "lowdisc": (np.sqrt(square.mean(0) - (mean.mean(0) ** 2).sum(1)) @ width) ** 2 - data,
        "own": ((np.sqrt(square) @ width) ** 2 - each).mean(),
    }
    return {name: float(floor) / (truth["A"] + truth["B"]) for name, floor in exact.items()}


def assert_floors(found: GradientFloor, setting: Setting, kinds: list[ToyRow], edges: np.ndarray) -> None:
    """The floors of all densities, of those with low discrepancy and of one for each row are the enumerated ones."""
    exact = exact_floors(setting, kinds, edges)
    for part in ("shared", "lowdisc", "own"):
        estimate = getattr(found, part)
        assert abs(estimate.value - exact[part]) < Z * estimate.stderr, part
        assert estimate.stderr < 0.1 * estimate.value, f"{part}: too vague to fail"
