"""How often the interval of a cosine of mean gradients holds the truth, and how wide it is: clipping, and over prompts.

python -m tests.checks.cosine_coverage [TRIALS]       the figures of dev/LOG.md, a minute of one core
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import torch

from stabledllm.gradient.bounded import cosine
from stabledllm.gradient.steps import StepGradients
from stabledllm.policy.noise import GroupNoise
from stabledllm.stats.estimate import student
from stabledllm.stats.jackknife import spread

DIRECTIONS = 200
Products = tuple[torch.Tensor, Sequence[torch.Tensor]]
"""Product and squared norms of two mean gradients; and without each step or prompt."""


def turning(
    steps: int, generator: torch.Generator, noise: float = 2.0, spread: float = 0.8, angle: float = 0.8
) -> torch.Tensor:
    """Gradients of steps whose size is log-normal, and whose direction turns with it: clipping turns the mean."""
    z = torch.randn(steps, 1, generator=generator, dtype=torch.float64)
    found = torch.randn(steps, DIRECTIONS, generator=generator, dtype=torch.float64) * noise / DIRECTIONS**0.5
    found[:, :1] += (angle * z.tanh()).cos()
    found[:, 1:2] += (angle * z.tanh()).sin()
    return (spread * z).exp() * found


def clipped(gradients: torch.Tensor) -> torch.Tensor:
    """Each cut to a norm of at most 1."""
    return gradients * (1 / gradients.norm(dim=1, keepdim=True)).clamp(max=1)


def true_cosine(noise: float) -> float:
    """That of the mean clipped with the mean raw gradient, from many steps."""
    many = turning(20_000, torch.Generator().manual_seed(1), noise)
    return float(torch.cosine_similarity(many.mean(0), clipped(many).mean(0), dim=0))


def of_clipping(gradients: torch.Tensor) -> Products:
    """What a cosine is estimated from, of so many steps."""
    c = clipped(gradients)
    inner = {"raw": gradients @ gradients.T, "clipped": c @ c.T}
    return StepGradients(inner, rows=4, cost=1.0, clipped_share=0.5).clipping_products()


def of_prompts(
    prompts: int, generator: torch.Generator, truth: float, noise: float = 0.2, spread: float = 1.0
) -> Products:
    """The same over prompts of log-normal size, each with unbiased figures of so large a relative error."""
    size = (spread * torch.randn(prompts, 1, generator=generator, dtype=torch.float64) - spread**2 / 2).exp()
    errors = noise * torch.randn(prompts, 3, generator=generator, dtype=torch.float64)
    along, signal, exact = (size * (torch.tensor([truth, 1.0, 1.0]) + errors)).unbind(1)
    rest = dict.fromkeys(("log_ratio", "loss", "gradient", "bias", "value", "offset"), along)
    figures, without = GroupNoise("x", 6, **rest, signal=signal, along=along, exact=exact).products()
    return figures, [without]


def of_student(products: Products) -> tuple[float, float]:
    """The jackknife of the ratio with Student's interval, as it was until 2026-11-30."""
    figures, (left_out, *_) = products
    value, without = ((each[..., 0] / (each[..., 1] * each[..., 2]).sqrt()) for each in (figures, left_out))
    half = student(len(without) - 1) * spread(without)
    return float(value) - half, float(value) + half


def coverage(draw: Callable[[], Products], truth: float, trials: int) -> dict[str, float]:
    """Shares of intervals that hold the truth, of Student's that do, of those not known; and the mean widths."""
    found = [(cosine(*each), of_student(each)) for each in (draw() for _ in range(trials))]
    known = [(new.interval(), old) for new, old in found if not math.isnan(new.value)]

    def held(ends: Sequence[tuple[float, float]]) -> float:
        return sum(low <= truth <= high for low, high in ends) / len(ends)

    new, old = ([each[i] for each in known] for i in (0, 1))
    return {
        "held": held(new),
        "student": held(old),
        "unknown": 1 - len(known) / trials,
        "width": sum(high - low for low, high in new) / len(new),
        "anything": sum(high - low == 2 for low, high in new) / len(new),
    }


def main(trials: int = 400) -> None:
    generator = torch.Generator().manual_seed(0)
    for noise in (0.5, 2.0, 5.0):
        for steps in (6, 16):
            truth = true_cosine(noise)

            def draw(steps: int = steps, noise: float = noise) -> Products:
                return of_clipping(turning(steps, generator, noise))

            _show(f"clipping, {steps} steps, noise {noise}, truth {truth:.3f}", coverage(draw, truth, trials))
    for prompts, truth, noise in ((24, 1.0, 0.2), (24, 0.6, 0.2), (24, 0.9, 0.5), (12, 0.9, 0.2), (6, 0.9, 0.2)):

        def draw(prompts: int = prompts, truth: float = truth, noise: float = noise) -> Products:
            return of_prompts(prompts, generator, truth, noise)

        _show(f"{prompts} prompts, noise {noise}, truth {truth}", coverage(draw, truth, trials))


def _show(what: str, found: dict[str, float]) -> None:
    print(f"{what}:", *(f"{name} {value:.3f}" for name, value in found.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
