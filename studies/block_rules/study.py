"""How noisy the published trainers' rules of t in blocks are, beside those of this project, at equal compute.

    python studies/block_rules/study.py        resumable; about five minutes of one idle core

It measures the shipped model as training in blocks would begin with it, and writes results.json, noise.png and the
table of README.md here after each objective and size of block. Those that results.json holds already are kept: delete
the file to measure all of them again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rules_picture import draw

from stabledllm.config.objectives import NAMED
from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_rows
from stabledllm.lab.measure.block_gradient import BlockGradientLaboratory
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

HERE = Path(__file__).parent
CELLS = (("bound", 4), ("bound", 32), ("unweighted", 32), ("window", 32))
"""What is minimised, and the size of a block: SDAR trains in blocks of 4, Fast-dLLM v2 and LLaDA2 in blocks of 32."""
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
    "window": (
        Rule("LLaDA2: one t a row, independent masks", "standard", one_t=True),
        Rule("a t for each block, independent masks", "standard"),
        OURS[0],
    ),
}
"""The rules by what they minimise; the first is the published one, which the others are divided by. A pair of masks
that complement each other cannot both have ratios from LLaDA2's window."""
OBJECTIVES = {
    objective: Objective(**{"window": None} | NAMED[name].keys)
    for objective, name in (("bound", "sdar"), ("unweighted", "fast-dllm"), ("window", "llada2"))
}


def main() -> None:
    done = {(cell["objective"], cell["block"]): cell for cell in _kept()}
    for of_cell in CELLS:
        if of_cell not in done:
            done[of_cell] = measured(*of_cell) | {"versions": versions()}
        _publish([done[each] for each in CELLS if each in done])
        print(*of_cell, flush=True)


def _kept() -> list[dict]:
    """What results.json holds of finished measurements."""
    path = HERE / "results.json"
    return read_json(path)["cells"] if path.is_file() else []


def _publish(cells: list[dict]) -> None:
    """Write what is measured so far, its picture and its table."""
    write_json(HERE / "results.json", {"cells": cells})
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
    parts = decompose(nested)
    found = {
        "objective": objective,
        "block": block,
        "loss": parts.as_dict(),
        "gradient": None,
        "one_t": {"loss": RateSplit.of(nested).as_dict(), "gradient": None},
        "rules": _of_loss(lab, RULES[objective], parts.data),
    }
    if not kind.window:
        gradients = lab.gradients(standard)
        found["gradient"] = gradients.decomposition().as_dict()
        found["one_t"] |= gradients.further({"blocks": {}})["blocks"]
        _add_gradient(gradients, kind, RULES[objective], found["rules"])
    for split in filter(None, found["one_t"].values()):
        del split["sentence"]  # made of the figures beside it
    return found | {"seconds": time.perf_counter() - started}


def _of_loss(lab: BlockLaboratory, rules: Sequence[Rule], data: Estimate) -> list[dict]:
    """The entries of the rules with the noise of the loss."""
    losses, entries = [], []
    for rule in rules:
        method = Method.parse(rule.method, objective=lab.meter.objective)
        cost = lab.cost(method, Uniform())
        size = {"rows": step_rows(method, OPTIONS.forwards, cost), "steps": OPTIONS.steps, "seed": OPTIONS.seed}
        drawn = measure_blocks(lab.meter, method, Uniform(), **size, one_t=rule.one_t)
        losses.append(MethodResult("standard" if not losses else rule.name, True, drawn, None, cost))
        entries.append({"rule": rule.name, "method": rule.method, "one_t": rule.one_t, "views": cost})
    for entry, found in zip(entries, compare_methods(losses, data), strict=True):
        entry["loss"] = _entry(found["variance_at_equal_compute"], found["relative_to_standard"])
        entry["gradient"] = None
        print(entry, flush=True)
    return entries


def _add_gradient(
    gradients: BlockGradientLaboratory, objective: Objective, rules: Sequence[Rule], entries: list[dict]
) -> None:
    """Add the noise of the gradient to the entries of the rules."""
    parts, published = gradients.decomposition(), None
    for rule, entry in zip(rules, entries, strict=True):
        gradients.steps.one_t = rule.one_t
        noise = gradients.noise(Method.parse(rule.method, objective=objective), Uniform(), entry["views"])
        published = published or noise
        ratio = Ratio(1.0, 1.0, 1.0) if noise is published else noise.over(published, parts.data)
        entry["gradient"] = _entry(noise.at_equal_compute(parts.data).as_dict(), ratio.as_dict())
        entry["gradient"]["noise_to_signal"] = noise.per_row_variance.value / parts.mean_square.value
        print(entry, flush=True)


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
            ratios = [shown(entry[part] and entry[part]["over_published"]) for part in ("loss", "gradient")]
            lines.append(f"| {cell['objective']} | {cell['block']} | {entry['rule']} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def shown(ratio: dict | None) -> str:
    """A ratio with its interval, as text; an estimate that is not above 0 by the upper end alone."""
    if ratio is None:
        return "not measured"
    value, low, high = (ratio[name] for name in ("value", "ci_low", "ci_high"))
    if low == high == 1:
        return "1"
    if value is None or not math.isfinite(value):
        return "–"
    known = low is not None and math.isfinite(low)
    if value <= 0:
        return f"below {high:.2f}" if known else "–"
    return f"{value:.2f} ({low:.2f} to {high:.2f})" if known else f"{value:.2f}"


if __name__ == "__main__":
    main()
