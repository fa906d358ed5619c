"""How noisy the published trainers' rules of t in blocks are, beside those of this project, at equal compute.

    python studies/block_rules/study.py        resumable; four minutes of one idle core

It measures the shipped model as training in blocks would begin with it, keeps every objective and size of block that is
done below runs/block_rules, and writes results.json, noise.png and the table of README.md here.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from pictures import draw

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_rows
from stabledllm.lab.measure.blocks import BlockLaboratory
from stabledllm.lab.measure.options import DecomposeOptions, GradientOptions
from stabledllm.lab.measure.progress import Progress
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.runtime.files import read_json, write_json, write_text
from stabledllm.runtime.provenance import versions
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio
from stabledllm.variance.blocks import RateSplit, measure_blocks
from stabledllm.variance.comparison import MethodResult, compare_methods
from stabledllm.variance.components import decompose
from stabledllm.variance.drawn import step_rows

HERE, OUT = Path(__file__).parent, Path("runs/block_rules")
CELLS = (("bound", 4), ("bound", 32), ("unweighted", 32))
"""What is minimised, and the size of a block: SDAR trains in blocks of 4, Fast-dLLM v2 in blocks of 32."""
OPTIONS = DecomposeOptions(
    rows=64, rates=6, masks=2, steps=32, grad=GradientOptions(rows=96, rates=3, masks=2, steps=16), seed=1
)
"""One set of sizes for everything; the gradient's are the smaller ones, since each costs a backward pass too."""
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Rule:
    """How one trainer draws t and masks in blocks."""

    name: str
    method: str
    one_t: bool = False


OURS = (
    Rule("a t for each block, lattice over rows x blocks, exact counts", "lowdisc+fixedcount"),
    Rule("the same, with complementary pairs", "lowdisc+complement"),
)
RULES = {
    "bound": (
        Rule("SDAR, dllm: one t a row, independent masks", "standard", one_t=True),
        Rule("a t for each block, independent masks", "standard"),
        *OURS,
    ),
    "unweighted": (
        Rule("Fast-dLLM v2: a t for each block, complementary pairs", "complement"),
        *OURS,
    ),
}
"""The rules by what they minimise; the first is the published one, which the others are divided by."""
OBJECTIVES = {
    "bound": Objective(normalization="token"),
    "unweighted": Objective("unweighted", normalization="token"),
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    cells = []
    for objective, block in CELLS:
        path = OUT / f"{objective}_{block}.json"
        if not path.is_file():
            write_json(path, measured(objective, block))
        cells.append(read_json(path))
        _publish(cells)
        print(path, flush=True)


def _publish(cells: list[dict]) -> None:
    """Write what is measured so far, its picture and its table."""
    write_json(HERE / "results.json", {"cells": cells, "versions": versions()})
    results = read_json(HERE / "results.json")
    write_text(HERE / "README.md", page((HERE / "README.md").read_text(encoding="utf-8"), results))
    draw(results, HERE / "noise.png")


def measured(objective: str, block: int) -> dict:
    """A, B, C and the noise of every rule of one objective in blocks of one size, of the loss and of the gradient."""
    started, kind = time.perf_counter(), OBJECTIVES[objective]
    loaded = load_model("tiny")
    loaded.model.config.block_size = block
    rows, _ = load_rows("synthetic", loaded.tokenizer, DataSettings(), "train", 256, print, wanted=256)
    lab = BlockLaboratory(OPTIONS, loaded, rows, kind, Progress("block rules"), block)
    standard = Method(objective=kind)
    nested = lab.nested(standard)
    parts, gradients = decompose(nested), lab.gradients(standard)
    of_gradient = gradients.decomposition()
    found = {
        "objective": objective,
        "block": block,
        "loss": parts.as_dict(),
        "gradient": of_gradient.as_dict(),
        "one_t": {"loss": RateSplit.of(nested).as_dict(), **gradients.further({"blocks": {}})["blocks"]},
        "rules": _of_rules(lab, gradients, RULES[objective], parts.data, of_gradient.data, of_gradient.mean_square),
    }
    return found | {"seconds": time.perf_counter() - started}


def _of_rules(lab, gradients, rules, data: Estimate, data_of_gradient: Estimate, mean_square: Estimate) -> list[dict]:
    losses, noises, entries = [], [], []
    for rule in rules:
        method = Method.parse(rule.method, objective=lab.meter.objective)
        cost = lab.cost(method, Uniform())
        size = {"rows": step_rows(method, OPTIONS.forwards, cost), "steps": OPTIONS.steps, "seed": OPTIONS.seed}
        drawn = measure_blocks(lab.meter, method, Uniform(), **size, one_t=rule.one_t)
        losses.append(MethodResult("standard" if not losses else rule.name, True, drawn, None, cost))
        gradients.steps.one_t = rule.one_t
        noises.append(gradients.noise(method, Uniform(), cost))
        entries.append({"rule": rule.name, "method": rule.method, "one_t": rule.one_t, "views": cost})
    compared = compare_methods(losses, data)
    for entry, of_loss, noise in zip(entries, compared, noises, strict=True):
        entry["loss"] = _entry(of_loss["variance_at_equal_compute"], of_loss["relative_to_standard"])
        ratio = Ratio(1.0, 1.0, 1.0) if noise is noises[0] else noise.over(noises[0], data_of_gradient)
        entry["gradient"] = _entry(noise.at_equal_compute(data_of_gradient).as_dict(), ratio.as_dict())
        entry["gradient"]["noise_to_signal"] = noise.per_row_variance.value / mean_square.value
        print(entry, flush=True)
    return entries


def _entry(noise: dict, ratio: dict) -> dict:
    return {"noise": noise, "over_published": ratio}


def page(text: str, results: dict) -> str:
    """The page with its table replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(results) + END + rest.split(END)[1]


def table(results: dict) -> str:
    """The table of the page."""
    lines = ["| minimised | block | rule | loss noise ÷ published | gradient noise ÷ published |", "|---" * 5 + "|"]
    for cell in results["cells"]:
        for entry in cell["rules"]:
            ratios = [shown(entry[part]["over_published"]) for part in ("loss", "gradient")]
            lines.append(f"| {cell['objective']} | {cell['block']} | {entry['rule']} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def shown(ratio: dict) -> str:
    """A ratio with its interval, as text."""
    value, low, high = (ratio[name] for name in ("value", "ci_low", "ci_high"))
    if low == high == 1:
        return "1"
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.2f}"
    return text if low is None or not math.isfinite(low) else f"{text} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
