"""What a lattice of exact counts leaves of the gradient's noise, predicted and drawn, and how exact a bell's law is.

    python -m tests.checks.lattice_error       the figures of dev/LOG.md, two minutes of one core

Toy rows, 8 a step, a falling density of t; predicted from 100 rows with few and more cells of t.
"""

from __future__ import annotations

import torch

from stabledllm.gradient.counts import _count_weights
from stabledllm.gradient.predicted import step_noise, uniform_for
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.bell import count_law
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from tests.checks.gradients import drawn
from tests.fakes.gradients import ToyGradients
from tests.oracle import toy_row
from tests.statistical.cases import case, in_window, under_bell

FALLING = Tabulated(torch.linspace(1.6, 0.6, 256, dtype=torch.float64), name="ppots")
CASES = {"all t": case, "0.3 to 0.8": lambda text: in_window(text, 0.3, 0.8), "bell": lambda t: under_bell(t, 2, 2)}


def main() -> None:
    for tokens in (6, 9):
        kinds = [toy_row(tokens, 0), toy_row(tokens - 1, 1)]
        for name, build in CASES.items():
            objective = build("standard").objective
            meter = ToyGradients(kinds, objective=objective)
            lattice, plain = (Method.parse(text, None, objective) for text in ("lowdisc+fixedcount", "fixedcount"))
            told = f"rows of {tokens - 1} and {tokens} tokens, {name}:"
            for rates in (4, 8):
                own = gradient_profile(meter, plain, rows=100, rates=rates, masks=2, seed=0)
                told += f" {step_noise(own, lattice, uniform_for(own, FALLING), 8, 1.0).estimate().value:.1f} ({rates})"
            print(f"{told}, drawn {drawn(lattice, FALLING, 8, 4000, meter)[0]:.1f}")
    for size in (200, 1000):
        weights = _count_weights(size, Objective("bell", bell=(2.0, 2.0)))
        exact = count_law(size, (2.0, 2.0), 1e-3, 1.0, power=0) / size
        found = weights.mean @ weights.step
        print(f"bell, {size} tokens: {float((found / exact - 1).abs().max()):.2%} at most, of the sum "
              f"{float((found - exact).abs().sum() / exact.sum()):.0e}")  # fmt: skip


if __name__ == "__main__":
    main()
