"""What to train with, from the measured noise of estimators: the method, its forwards, and the correction of the loss.

The same rules hold for pairs (``preference_noise.json``) and for policy gradients (``policy_noise.json``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import yaml

from stabledllm.errors import UserError
from stabledllm.likelihood.compared import MeasuredNoise
from stabledllm.likelihood.holm import holm
from stabledllm.noise.of_parts import OfParts

LEVEL = 0.05
"""Of all comparisons with Standard together."""
MOST_BUDGET = 64
WORTH = 0.01
"""The share of the loss from which its bias is worth a correction."""
STANDARD = "standard"


@dataclass(frozen=True)
class Advice:
    """What to train with, and why."""

    method: str
    """The name of the estimator, as it was measured."""
    told_apart: bool
    """Whether it is surely less noisy than Standard."""
    budget: int
    """Forwards for each response and model."""
    correction: str | None
    """Of the loss of pairs; None for a loss that has none."""
    quantity: str
    sentences: tuple[str, ...]
    recipe: str
    typed: str = ""
    """What stands on the command line beside the recipe."""

    def as_dict(self) -> dict:
        """JSON form."""
        return asdict(self) | {"sentences": list(self.sentences)}


def rows_of(measured: Sequence[MeasuredNoise], compared: Sequence[MeasuredNoise]) -> list[dict]:
    """The ``methods`` of a record: every figure, its ratio to that of the first one, and corrected p values.

    Args:
        compared: those of ``measured`` that one may train with and that estimate the same as the first, Standard.
    """
    standard, rows = measured[0], []
    p = {q: holm([noise.p_of_less(standard, q) for noise in compared]) for q in standard.QUANTITIES}
    place = {noise.name: i for i, noise in enumerate(compared)}
    for noise in measured:
        over = {q: noise.over(standard, q).as_dict() for q in noise.QUANTITIES}
        own = {q: p[q][place[noise.name]] for q in p} if noise.name in place else None
        rows.append(noise.as_dict() | {"over_standard": over, "p_holm": own})
    return rows


def advise(record: dict, quantity: str | None = None) -> Advice:
    """The least noisy of the estimators that are surely below Standard, what it costs, and the lines to paste.

    "Surely" allows for the number of estimators that were compared, by Holm's correction of paired t tests. The budget
    is the least at which the noise of the draws makes no more of the gradient's variance than the data do.

    Args:
        record: ``preference_noise.json`` or ``policy_noise.json``.
        quantity: whose noise decides, ``gradient`` (the default) or ``loss``.

    Raises:
        UserError: the record compares no estimator with Standard.
    """
    quantity, rows = quantity or "gradient", record["methods"]
    others = [row for row in rows if row.get("p_holm")]
    if not others:
        raise UserError("recommend: expected Standard and another estimator to compare it with, found Standard alone.")
    sure = [row for row in others if row["p_holm"][quantity] < LEVEL]
    best = min(sure or others, key=lambda row: _value(row["over_standard"][quantity]))
    chosen = best if sure else next(row for row in rows if row["name"] == STANDARD)
    budget, of_budget = _budget(chosen)
    correction, of_correction = _correction(record, chosen, budget)
    return Advice(
        method=chosen["name"],
        told_apart=bool(sure),
        budget=budget,
        correction=correction,
        quantity=quantity,
        sentences=(_compared(best, len(others), quantity, bool(sure)), *of_budget, *of_correction),
        recipe=_recipe(record, chosen, budget, correction),
        typed=record.get("typed") or "",
    )


def _compared(best: dict, count: int, quantity: str, sure: bool) -> str:
    ratio = best["over_standard"][quantity]
    low, high = (_value(ratio, end) for end in ("ci_low", "ci_high"))
    ends = f" ({low:.2g} to {high:.2g})" if math.isfinite(low + high) else ""
    of_all = f" among {count} compared" if count > 1 else ""
    if not sure:
        return (
            f"No method's {quantity} noise is told apart from Standard's at equal forwards: the least{of_all} is "
            f"{best['name']}'s, {_value(ratio):.2g}{ends} of it, p = {best['p_holm'][quantity]:.2g} after Holm's "
            f"correction. Stay with standard, or measure more."
        )
    return (
        f"{best['name']} has {_value(ratio):.2g}{ends} of Standard's {quantity} noise at equal forwards, surely less "
        f"(p = {best['p_holm'][quantity]:.2g} after Holm's correction for {count} comparisons): train with it"
        f"{', and give the p_of_t of stabledllm fit' if _needs_p(best) else ''}."
    )


def _needs_p(row: dict) -> bool:
    """Whether a method takes a density that is fitted before training."""
    return not row.get("preset") and OfParts(row["name"]).needs_p


def _budget(row: dict) -> tuple[int, list[str]]:
    """The forwards for a response: the least power of two times its own at which draws add no more than data do."""
    noise, between, forwards = _value(row["gradient"]), _value(row, "between"), row["forwards"]
    if not (noise > 0 and between > 0):
        return forwards, []
    share, budget = noise / (noise + between), row["multiple"]
    while budget < MOST_BUDGET and noise * forwards / budget > between:
        budget *= 2
    enough = noise * forwards / budget <= between
    half = f"a budget of {budget} keeps it to half" if enough else f"a budget of {budget} leaves it above half"
    return budget, [
        f"At {forwards} forwards a response the noise of the draws makes {100 * share:.0f} % of the gradient's "
        f"variance, the data the rest; {half}."
    ]


def _correction(record: dict, row: dict, budget: int) -> tuple[str | None, list[str]]:
    """Whether to take off the loss's bias: where it is surely there, and more than a hundredth of the loss."""
    if record["objective"] != "dpo":
        return None, []
    bias, error = (_value(row["bias"], name) * row["forwards"] / budget for name in ("value", "stderr"))
    loss = abs(_value(row["value"]))
    share = f"{100 * bias / loss:.2g} % of the loss"
    if not bias > WORTH * loss:
        return "none", [f"Its noise adds {share} at that budget, too little to correct: correction=none."]
    if not bias > 2 * error:
        return "none", [f"Its noise adds {share} at that budget, which is not told from 0: correction=none."]
    method = OfParts(row["name"])
    draws, needed = budget // row["multiple"], 2 + 2 * any(method.has(s) for s in ("lowdisc", "strats"))
    if draws < needed:
        least = needed * row["multiple"]
        return "none", [f"Its noise adds {share}; a budget of {least} would allow correction=jackknife."]
    return "jackknife", [f"Its noise adds {share} at that budget: correction=jackknife takes it off."]


def _recipe(record: dict, row: dict, budget: int, correction: str | None) -> str:
    """YAML for ``stabledllm train``."""
    kind, name = record["objective"], row["name"]
    tree: dict = {"model": record["start"], "data": {"train": record["data"]} | record["recipe"].get("data", {})}
    tree["objective"] = {"kind": kind} | record["recipe"].get("objective", {})
    own = {"budget": budget} | ({"correction": correction} if correction else {})
    tree[kind] = record["recipe"].get(kind, {}) | own
    if row.get("preset"):  # which has noise of its own, and takes no other method
        tree[kind]["estimator"] = row["preset"]
    tree["method"] = STANDARD if row.get("preset") else name
    return yaml.safe_dump(tree, sort_keys=False).rstrip()


def _value(estimate: Mapping, name: str = "value") -> float:
    """A stored number; an unknown one is null in a file, and NaN in a record that was just made."""
    found = estimate.get(name)
    return math.nan if found is None else float(found)
