"""How often the interval of a cosine of mean gradients holds the truth: under clipping, and over prompts.

python -m tests.checks.cosine_coverage [TRIALS]       the figures of dev/LOG.md, a minute of one core
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch

from stabledllm.gradient.fieller import cosine
from stabledllm.gradient.steps import StepGradients
from stabledllm.stats.estimate import Estimate, student

DIRECTIONS = 200


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


def true_cosine(many: torch.Tensor) -> float:
    """That of the mean clipped with the mean raw gradient."""
    return float(torch.cosine_similarity(many.mean(0), clipped(many).mean(0), dim=0))


def of_clipping(gradients: torch.Tensor) -> Estimate:
    """The cosine as it is estimated from so many steps."""
    c = clipped(gradients)
    inner = {"raw": gradients @ gradients.T, "clipped": c @ c.T}
    return StepGradients(inner, rows=4, cost=1.0, clipped_share=0.5).clipping_cosine()


def of_prompts(
    prompts: int, generator: torch.Generator, truth: float, noise: float = 0.2, spread: float = 1.0
) -> Estimate:
    """The cosine over prompts of log-normal size, each with unbiased figures of so large a relative error."""
    size = (spread * torch.randn(prompts, 1, generator=generator, dtype=torch.float64) - spread**2 / 2).exp()
    errors = noise * torch.randn(prompts, 3, generator=generator, dtype=torch.float64)
    each = size * (torch.tensor([truth, 1.0, 1.0]) + errors)
    return cosine(each.sum(0), [each.sum(0) - each])


def coverage(draw: Callable[[], Estimate], truth: float, trials: int) -> tuple[float, float, float]:
    """The share of intervals that hold the truth, of Student's that do, and of cosines that are not known."""
    found = [draw() for _ in range(trials)]
    known = [each for each in found if not math.isnan(each.value)]
    held = sum(each.interval()[0] <= truth <= each.interval()[1] for each in known)
    of_student = sum(abs(each.value - truth) <= student(each.n - 1) * each.stderr for each in known)
    return held / len(known), of_student / len(known), 1 - len(known) / trials


def main(trials: int = 400) -> None:
    generator = torch.Generator().manual_seed(0)
    print("share of intervals that hold the truth, of Student's, and of cosines that are not known")
    for noise in (0.5, 2.0, 5.0):
        for steps in (6, 16):
            truth = true_cosine(turning(100_000, generator, noise))

            def draw(steps: int = steps, noise: float = noise) -> Estimate:
                return of_clipping(turning(steps, generator, noise))

            print(f"clipping, {steps} steps, noise {noise}, truth {truth:.3f}:", *_shown(coverage(draw, truth, trials)))
    for prompts, truth, noise in ((24, 1.0, 0.2), (24, 0.6, 0.2), (24, 0.9, 0.5), (12, 0.9, 0.2)):

        def draw(prompts: int = prompts, truth: float = truth, noise: float = noise) -> Estimate:
            return of_prompts(prompts, generator, truth, noise)

        print(f"{prompts} prompts, noise {noise}, truth {truth}:", *_shown(coverage(draw, truth, trials)))


def _shown(shares: tuple[float, float, float]) -> list[str]:
    return [f"{share:.3f}" for share in shares]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
