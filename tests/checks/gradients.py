"""Steps of the toy model that are really drawn, and the parts of its gradients' noise by enumeration."""

from __future__ import annotations

import functools

import numpy as np
import torch

from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
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
