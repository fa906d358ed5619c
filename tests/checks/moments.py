"""Check functions shared by the tests, which must pass, and the mutation tests, which must see them raise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stabledllm import loss as loss_module
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key
from tests.checks.statistics import Z, assert_mean, assert_variance
from tests.oracle import Setting, ToyRow, moments, step_variance, toy_row
from tests.statistical.cases import Case

SAMPLES = 150_000
LEAST_COVERAGE = 0.93
"""What a 95 % interval must hold, whatever the law."""
_LAYOUT = (1, 2, 4, 5, 7, 8)
"""Places of the maskable tokens in the row: prompt before, fixed tokens between, padding behind."""


def rows_of(row: ToyRow, n: int, step_rows: int | None = None) -> Rows:
    """n copies of the toy row as the library sees them."""
    maskable = torch.zeros(len(_LAYOUT) + 4, dtype=torch.bool)
    delimiter = torch.zeros_like(maskable)
    maskable[list(_LAYOUT[: row.size])] = True
    delimiter[[_LAYOUT[i] for i in row.delimiter]] = True
    delimiter[0] = True  # a delimiter in the prompt, which nothing may mask
    return Rows(
        position=torch.arange(n),
        step_rows=step_rows or n,
        maskable=maskable.expand(n, -1),
        token_index=torch.arange(len(maskable)),
        delimiter=delimiter.expand(n, -1),
    )


def features(row: ToyRow, draw: Draw) -> Tensor:
    """Row loss and its gradient under each drawn mask, through the library's own ``row_losses``; shape (n, F)."""
    table = torch.from_numpy(row.table)
    places = list(_LAYOUT[: row.size])
    state = (draw.mask[..., places].long() << torch.arange(row.size)).sum(-1)
    used = draw.mask & draw.active[..., None]
    out = []
    for f in range(table.shape[-1]):
        nll = torch.zeros(draw.mask.shape, dtype=torch.float64)
        nll[..., places] = table[..., f][state]
        out.append(loss_module.row_losses(nll[used], draw.mask, draw.coefficient, draw.active))
    return torch.stack(out, dim=1)


def sample(case: Case, row: ToyRow, n: int = SAMPLES, seed: int = 7) -> Tensor:
    """n independent row losses and gradients drawn by ``Method.draw``, shape (n, F)."""
    draw = case.method.draw(Key(seed, 0), rows_of(row, n), case.sampler)
    return features(row, draw)


def check_mean(samples: Tensor, mean: np.ndarray, what: object = "") -> None:
    """Loss and every gradient component have the given mean."""
    for f, expected in enumerate(mean):
        assert_mean(samples[:, f], expected, f"{what}, mean of {'gradient ' + str(f) if f else 'loss'}")


def check_variance(samples: Tensor, variance: np.ndarray, what: object = "") -> None:
    """The loss has the given variance, the gradient the given trace of covariance."""
    assert_variance(samples[:, 0], variance[0], f"{what}, variance of the loss")
    squared = ((samples[:, 1:] - samples[:, 1:].mean(0)) ** 2).sum(1)
    assert_mean(squared, variance[1:].sum(), f"{what}, trace of the gradient's covariance")


def check_case(case: Case, size: int = 4, *, with_variance: bool = True, n: int = SAMPLES) -> None:
    """Mean and, where it can be sampled, variance of a method are those of its enumeration."""
    row = toy_row(size)
    mean, variance = moments(case.setting, row)
    samples = sample(case, row, n)
    check_mean(samples, mean, case)
    if with_variance:
        check_variance(samples, variance, case)


def step_losses(method: Method, case: Case, row: ToyRow, n: int, steps: int) -> Tensor:
    """Mean features of each of ``steps`` optimizer steps of n rows, shape (steps, F).

    The source is drawn step by step; the masks of all steps in one call, as they depend on t alone.
    """
    device = torch.device("cpu")
    u = torch.cat([method.source.uniforms(Key(3, step), n, device) for step in range(steps)])
    draw = replace(method, objective=case.objective).draw_at(
        case.sampler.icdf(u), Key(5, 0), rows_of(row, n * steps), case.sampler
    )
    return features(row, draw).view(steps, n, -1).mean(1)


def check_step(method: Method, case: Case, n: int, steps: int = 3000, size: int = 3) -> None:
    """The step loss (and gradient) is unbiased and its variance is the exact one of its source of u."""
    row = toy_row(size)
    strata = method.source.count(n) if method.source.name == "strats" else 0
    exact = step_variance(case.setting, row, "strats" if strata else "lowdisc", n, strata)
    means = step_losses(method, case, row, n, steps)
    check_mean(means, moments(case.setting, row)[0], f"{method.name} n={n}")
    check_variance(means, exact, f"{method.name} n={n}")


def standard_mean(setting: Setting, row: ToyRow) -> np.ndarray:
    """The standard objective with the eps and the weighting of ``setting``."""
    return moments(Setting(eps=setting.eps, power=setting.power), row)[0]


def assert_covers(hits: int, trials: int, what: str) -> None:
    """Intervals that held the truth ``hits`` times do not cover significantly less than :data:`LEAST_COVERAGE`."""
    error = (LEAST_COVERAGE * (1 - LEAST_COVERAGE) / trials) ** 0.5
    assert hits / trials >= LEAST_COVERAGE - Z * error, f"{what}: {hits} of {trials} intervals hold the truth"
