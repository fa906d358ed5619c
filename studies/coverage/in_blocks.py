"""Steps of rows in blocks whose variance is known, to see how often its interval holds it.

Every token of a row has the same cross-entropy, so that given t a block's loss has the mean f of its row, and all the
mask noise is that of the count, ``f² (1 - p_mask) / (P p_mask)``: the law with the heaviest tail that masks have. B is
0, and Standard, a lattice, and one t for all blocks of a row have the same variance. The gradient of a block is its
loss times a direction of its own.

Legend: S steps, n rows of a step, m blocks of a row, P tokens of a block, D coordinates, u units.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.gradient.block_noise import StepNoiseInBlocks
from stabledllm.gradient.steps import StepGradients
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import p_mask
from stabledllm.noise.streams import Key
from stabledllm.stats.estimate import Estimate
from stabledllm.variance.blocks import measure_blocks, step_rates
from stabledllm.variance.comparison import MethodResult, compare_methods
from stabledllm.variance.some_masked import SomeMasked, chance_of_some

SIZES = {"in blocks of 4": (4, 8), "in blocks of 32": (32, 2)}
"""P and m of each layout."""
COMPARED = ("lowdisc", "one t a row")
"""What is compared with Standard, whose noise each of them has."""
ROWS, POPULATION, COORDINATES, UNITS = 32, 200, 30, 96
DATA_ERROR = 0.1
"""Standard error of C, as a share of it."""


class Blocks:
    """A meter of rows in blocks whose tokens all have the cross-entropy of their row, and the truth about it."""

    def __init__(self, layout: str):
        self.tokens, self.count = SIZES[layout]
        generator = torch.Generator().manual_seed(self.tokens)
        self.rows, self.forwards, self.objective = range(POPULATION), 0, Objective()
        self.factor = torch.randn(POPULATION, generator=generator, dtype=torch.float64).mul(0.5).exp()
        direction = torch.randn(POPULATION, self.count, COORDINATES, generator=generator, dtype=torch.float64)
        self.direction = direction / direction.norm(dim=-1, keepdim=True)
        self.block_sizes = torch.full((POPULATION, self.count), self.tokens)
        t = torch.logspace(-9, 0, 200_001, dtype=torch.float64, base=10.0)
        p = p_mask(t, self.objective.eps)
        noise = (1 - p) / (self.tokens * p)
        missing = (1 + noise) * (1 - chance_of_some(t, torch.tensor(self.tokens), self.objective))
        square = float((self.factor**2).mean())
        self.pattern = square * float(torch.trapezoid(noise, t)) / self.count
        self.hidden = float(torch.trapezoid(missing, t)) / self.count
        self.data = float(self.factor.var(correction=0))
        means = self.factor[:, None] * self.direction.mean(1)
        self.data_of_gradient = float(means.var(0, correction=0).sum())

    def block_losses(self, row: Tensor, t: Tensor, method: Method, key: Key, sampler=None) -> Tensor:
        units = t.numel()
        rows = Rows(
            torch.arange(units), units, torch.ones(units, self.tokens, dtype=torch.bool), torch.arange(self.tokens)
        )
        draw = method.draw_at(t.flatten(), key, rows, sampler or Uniform())
        losses = (draw.mask * draw.coefficient).sum((1, 2)).double().view(t.shape)
        return losses * self.factor[row, None] / self.count

    def steps(self, name: str, steps: int, seed: int) -> dict[str, Tensor]:
        """Gradients of drawn steps, each of whose blocks hides a token, (S, D)."""
        method, one_t = method_of(name)
        given, out = replace(method, masker=SomeMasked()), []
        for s in range(steps):
            key = Key(seed, s)
            row = (torch.rand(ROWS, generator=torch.Generator().manual_seed(1000 * seed + s)) * POPULATION).long()
            t = step_rates(method, Uniform(), key, self.block_sizes[row], one_t=one_t)
            chance = chance_of_some(t, self.block_sizes[row], self.objective)
            losses = chance * self.block_losses(row, t, given, key)
            out.append(torch.einsum("nm,nmd->d", losses, self.direction[row]) / ROWS)
        return torch.stack(out)


def method_of(name: str) -> tuple[Method, bool]:
    """The method, and whether all blocks of a row have one t."""
    return Method.parse("lowdisc" if name == "lowdisc" else "standard"), name == "one t a row"


def of_losses_in_blocks(kind: str, law: str, steps: int, trials: int) -> dict[str, float]:
    """The shares of trials in which the intervals of a variance, and of its ratio to Standard's, hold the truth."""
    meter, hits = Blocks(law), {"variance": 0, "ratio 1": 0, "ratio 1, no interval": 0}
    generator = torch.Generator().manual_seed(steps)
    for seed in range(trials):
        c = _data(meter.data, generator)
        drawn = []
        for name in ("standard", kind):
            method, one_t = method_of(name)
            found = measure_blocks(meter, method, Uniform(), rows=ROWS, steps=steps, seed=seed, one_t=one_t)
            drawn.append(MethodResult(name, True, found, None, 1.0))
        _count(hits, drawn[1].measured.per_row_variance, meter.pattern + meter.data)
        ratio = compare_methods(drawn, c)[1]["relative_to_standard"]
        _count_ratio(hits, ratio["ci_low"], ratio["ci_high"])
    return {name: count / trials for name, count in hits.items()}


def of_gradients_in_blocks(kind: str, law: str, steps: int, trials: int) -> dict[str, float]:
    """The same of the gradient, what steps leave out being estimated from 96 single blocks."""
    meter, hits = Blocks(law), {"variance": 0, "ratio 1": 0, "ratio 1, no interval": 0}
    generator = torch.Generator().manual_seed(steps)
    for seed in range(trials):
        c = _data(meter.data_of_gradient, generator)
        units = torch.randint(POPULATION, (UNITS,), generator=generator)
        hidden = (meter.hidden * meter.factor[units] ** 2)[None]
        noise = []
        for name in ("standard", kind):
            g = meter.steps(name, steps, seed)
            noise.append(StepNoiseInBlocks(StepGradients({"raw": g @ g.T}, ROWS, 1.0, 0.0), 1.0, hidden))
        _count(hits, noise[1].per_row_variance, meter.pattern + meter.data_of_gradient)
        ratio = noise[1].over(noise[0], c)
        _count_ratio(hits, ratio.ci_low, ratio.ci_high)
    return {name: count / trials for name, count in hits.items()}


def _data(true: float, generator: torch.Generator) -> Estimate:
    value = true * (1 + DATA_ERROR * float(torch.randn((), generator=generator)))
    return Estimate(value=value, stderr=DATA_ERROR * true, n=48)


def _count(hits: dict[str, int], found: Estimate, truth: float) -> None:
    low, high = found.interval()
    hits["variance"] += math.isnan(low + high) or low <= truth <= high


def _count_ratio(hits: dict[str, int], low: float, high: float) -> None:
    unknown = math.isnan(low + high)
    hits["ratio 1"] += unknown or low <= 1 <= high
    hits["ratio 1, no interval"] += unknown
