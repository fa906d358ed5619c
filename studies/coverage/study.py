"""How often the 95 % intervals of few drawn steps hold the truth, for normal and for skewed step losses, by simulation.

Usage: python studies/coverage/study.py [TRIALS] [--only TEXT]. It writes ``results.json`` and the table of
``README.md`` beside itself; 1,000 trials, the default, take some 20 minutes on one core. ``--only`` simulates the cells
whose names contain a text anew and keeps the others' results. The laws ``shipped model, ...`` are the row losses of the
shipped model, of which a large pool is drawn first (``pool``): a minute.

Legend: S steps, n rows of a step, D coordinates of a gradient.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from in_blocks import COMPARED, SIZES, of_gradients_in_blocks, of_losses_in_blocks
from torch import Tensor

from stabledllm.gradient.steps import StepGradients
from stabledllm.gradient.steps import ratio as gradient_ratio
from stabledllm.runtime.files import read_json, write_json, write_text
from stabledllm.stats.estimate import Estimate
from stabledllm.variance.comparison import MethodResult, compare_methods
from stabledllm.variance.drawn import Measured

HERE = Path(__file__).parent
STEPS, ROWS, COORDINATES = (4, 8, 16, 48), 32, 30
LEAST = 0.93
"""Least coverage that is asked of every cell."""
SIGMAS = {"normal": 0.0, "log-normal, sigma 0.5": 0.5, "log-normal, sigma 1": 1.0}
"""Laws that the intervals were made for: the sd of a loss's logarithm; 0 is a normal law."""
RARE = "one in ten 5 times as wide"
OTHERS = ("exponential", "gamma, shape 0.5", "Student's t5", RARE, "two values, one in ten")
"""Laws that they were not made for."""
MODEL = {"shipped model, standard": "standard", "shipped model, ppots": "ppots"}
"""Row losses of the shipped model under a method."""
POOL = 10_240
"""Row losses of the model that are drawn once; trials draw from them, so that their variance is the true one."""
RATIOS = {"ratio 1": 1.0, "ratio 0.5": 0.5}
"""True ratios of a method's noise at equal compute to Standard's."""
DATA_SHARE, DATA_ERROR = 0.2, 0.02
"""C, and the standard error of its estimate, as shares of Standard's variance."""
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def drawn(law: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent draws of mean 0 and variance 1."""
    if law in MODEL:
        return pool(MODEL[law])[torch.randint(POOL, shape, generator=generator)]
    if law in OTHERS:
        return _of_other(law, shape, generator)
    z, sigma = torch.randn(shape, generator=generator, dtype=torch.float64), SIGMAS[law]
    if not sigma:
        return z
    square = math.exp(sigma**2)
    return ((sigma * z).exp() - square**0.5) / ((square - 1) * square) ** 0.5


def _of_other(law: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    u = torch.rand(shape, generator=generator, dtype=torch.float64)
    if law == "exponential":
        return -torch.log1p(-u) - 1
    if law == "gamma, shape 0.5":
        return (z**2 - 1) / 2**0.5
    if law == "Student's t5":
        square = (torch.randn((*shape, 5), generator=generator, dtype=torch.float64) ** 2).sum(-1)
        return z / (square / 5) ** 0.5 * (3 / 5) ** 0.5
    rare = u < 0.1
    return z * torch.where(rare, 5.0, 1.0) / 3.4**0.5 if "wide" in law else (rare.double() - 0.1) / 0.3


@functools.cache
def pool(method: str) -> Tensor:
    """Importance-weighted row losses of the shipped model as training draws them, brought to mean 0 and variance 1."""
    from stabledllm.build import build_methods
    from stabledllm.config.settings import DecomposeSettings
    from stabledllm.data.bundle import load_rows
    from stabledllm.lab.from_settings import build_measuring
    from stabledllm.lab.measure.laboratory import Laboratory
    from stabledllm.lab.measure.progress import Progress
    from stabledllm.models.loading import load_model
    from stabledllm.noise.densities import Uniform
    from stabledllm.variance.drawn import measure

    settings = DecomposeSettings(model="tiny", methods=["standard", "ppots"])
    loaded, methods = load_model(settings.model), {one.name: one for one in build_methods(settings)}
    rows, _ = load_rows("synthetic", loaded.tokenizer, settings.data, "train", None, print, wanted=512)
    lab = Laboratory(build_measuring(settings), loaded, rows, methods["standard"].objective, Progress("pool", None))
    chosen = methods[method]
    sampler = lab.density(chosen).sampler if chosen.needs_p else Uniform()
    losses = measure(lab.meter, chosen, sampler, rows=ROWS, steps=POOL // ROWS, seed=1).row_losses.flatten()
    return (losses - losses.mean()) / losses.std(correction=0)


def losses_of(kind: str, law: str, steps: int, generator: torch.Generator) -> Tensor:
    """Row losses of variance 1 a row of the step, (S, n), for each kind of :data:`KINDS`."""
    if kind == "one loss a step":
        return drawn(law, (steps, 1), generator).expand(-1, 8) / 8**0.5
    return drawn(law, (steps, ROWS), generator)


KINDS = {"independent rows": True, "means of rows": False, "one loss a step": False}
"""What a variance is taken over: all rows of all steps (iid t), steps of 32 rows, or steps whose rows are all alike."""


def of_losses(kind: str, law: str, steps: int, trials: int) -> dict[str, float]:
    """The shares of trials in which the variance's and the ratios' intervals hold the truth, and that have none."""
    generator = torch.Generator().manual_seed(steps)
    hits, unknown = dict.fromkeys(("variance", *RATIOS), 0), dict.fromkeys(RATIOS, 0)
    for _ in range(trials):
        data = DATA_SHARE + DATA_ERROR * float(torch.randn((), generator=generator))
        c = Estimate(value=data, stderr=DATA_ERROR, n=48)
        standard = Measured(losses_of(kind, law, steps, generator), KINDS[kind], 1.0)
        hits["variance"] += _holds(standard.per_row_variance.interval(), 1.0)
        for name, true in RATIOS.items():
            scale = (true * (1 - DATA_SHARE) + DATA_SHARE) ** 0.5
            other = Measured(scale * losses_of(kind, law, steps, generator), KINDS[kind], 1.0)
            both = [MethodResult(n, True, m, None, 1.0) for n, m in (("standard", standard), ("other", other))]
            found = compare_methods(both, c)[1]["relative_to_standard"]
            hits[name] += _holds((found["ci_low"], found["ci_high"]), true)
            unknown[name] += math.isnan(found["ci_high"])
    shares = {name: count / trials for name, count in hits.items()}
    return shares | {f"{name}, no interval": count / trials for name, count in unknown.items()}


def of_gradients(kind: str, law: str, steps: int, trials: int) -> dict[str, float]:
    """The same for step gradients of 30 coordinates, of variance 1 in all, and their ratio of noise to signal.

    ``one scale a step``: normal coordinates times one log-normal factor a step, as where a rare row outweighs others.
    """
    generator = torch.Generator().manual_seed(steps)
    hits, unknown = {"variance": 0, "ratio 1": 0}, 0

    def measured() -> StepGradients:
        if kind == "coordinates":
            noise = drawn(law, (steps, COORDINATES), generator)
        else:
            noise = torch.randn((steps, COORDINATES), generator=generator, dtype=torch.float64)
            noise = noise * _scales(law, steps, generator)
        g = noise / COORDINATES**0.5
        g[:, 0] += 1.0
        return StepGradients({"raw": g @ g.T}, ROWS, 1.0, 0.0)

    for _ in range(trials):
        one, other = measured(), measured()
        hits["variance"] += _holds(one.variance().interval(), 1.0)
        found = gradient_ratio(other, one, "raw")
        hits["ratio 1"] += _holds((found.ci_low, found.ci_high), 1.0)
        unknown += not found.is_known
    return {name: count / trials for name, count in hits.items()} | {"ratio 1, no interval": unknown / trials}


def _scales(law: str, steps: int, generator: torch.Generator) -> Tensor:
    """Factors of a step's noise whose mean square is 1, (S, 1)."""
    if law == RARE:
        wide = torch.rand((steps, 1), generator=generator, dtype=torch.float64) < 0.1
        return torch.where(wide, 5.0, 1.0).double() / 3.4**0.5
    sigma = SIGMAS[law]
    return (sigma * torch.randn((steps, 1), generator=generator, dtype=torch.float64) - sigma**2).exp()


def _holds(ends: tuple[float, float], truth: float) -> bool:
    """Whether an interval holds the truth; one that is not known claims nothing."""
    return math.isnan(sum(ends)) or ends[0] <= truth <= ends[1]


GRADIENTS = ("coordinates", "one scale a step")
Simulate = Callable[[str, str, int, int], dict[str, float]]


def cells() -> list[tuple[str, str, str, int, Simulate]]:
    """What is simulated: the quantity, the kind of steps, the law, the number of steps, and the function."""
    loss = [("loss", kind, law, s, of_losses) for kind in KINDS for law in SIGMAS for s in STEPS]
    loss += [("loss", kind, law, s, of_losses) for kind in KINDS for law in (*OTHERS, *MODEL) for s in STEPS[:3]]
    gradient = [
        ("gradient", kind, law, s, of_gradients)
        for kind in GRADIENTS
        for law in (*SIGMAS, RARE)
        if kind == "coordinates" or law == RARE or SIGMAS[law]
        for s in STEPS[:3]
    ]
    in_blocks = [
        (of, kind, law, s, simulate)
        for of, simulate in (("loss", of_losses_in_blocks), ("gradient", of_gradients_in_blocks))
        for kind in COMPARED
        for law in SIZES
        for s in STEPS[:3]
    ]
    return loss + gradient + in_blocks


def table(results: dict) -> str:
    """The table of the page."""
    lines = ["| of the | drawn | law | steps | variance | ratio 1 | ratio 0.5 | no ratio |", "|---" * 8 + "|"]
    for cell in results["cells"]:
        shares = cell["coverage"]
        held = [_share(shares.get(name)) for name in ("variance", "ratio 1", "ratio 0.5")]
        none = f"{shares['ratio 1, no interval']:.2f}"
        lines.append(f"| {' | '.join([cell['of'], cell['kind'], cell['law'], str(cell['steps']), *held, none])} |")
    return "\n".join(lines) + "\n"


def _share(share: float | None) -> str:
    """A coverage as text, in bold where it is below what is asked for."""
    if share is None:
        return ""
    return f"{share:.3f}" if share >= LEAST else f"**{share:.3f}**"


def page(text: str, results: dict) -> str:
    """The page with its table replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(results) + END + rest.split(END)[1]


def main(trials: int, only: str) -> None:
    """Simulate, and write ``results.json`` and the table."""
    kept = {}
    if only:
        earlier = read_json(HERE / "results.json")["cells"]
        kept = {_name(cell): cell for cell in earlier if only not in " ".join(map(str, _name(cell)))}
    found = []
    for of, kind, law, steps, simulate in cells():
        cell = {"of": of, "kind": kind, "law": law, "steps": steps, "trials": trials}
        if _name(cell) not in kept:
            kept[_name(cell)] = cell | {"coverage": simulate(kind, law, steps, trials)}
            print(kept[_name(cell)], flush=True)
        found.append(kept[_name(cell)])
    write_json(HERE / "results.json", {"cells": found})
    results = read_json(HERE / "results.json")
    write_text(HERE / "README.md", page((HERE / "README.md").read_text(encoding="utf-8"), results))


def _name(cell: dict) -> tuple:
    return cell["of"], cell["kind"], cell["law"], cell["steps"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int, nargs="?", default=1000)
    parser.add_argument(
        "--only", default="", help="simulate only cells with this text anew: of a quantity, kind or law"
    )
    given = parser.parse_args()
    main(given.trials, given.only)
