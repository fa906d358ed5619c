"""``rates`` in ``results.json``: each method's final NLL over the learning rates, and the range near its best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from numpy import ndarray

from stabledllm.config.settings import ExperimentSettings
from stabledllm.experiment.rate_range import (
    WITHIN,
    Range,
    best_difference,
    mean_curves,
    range_intervals,
    ratio_interval,
    widest_range,
)

EXACT, LEAST, MOST, UNKNOWN = "exact", "at least", "at most", "unknown"
"""What a stored factor or ratio is where a range ends with the grid."""


def rates_record(runs: Sequence[dict], settings: ExperimentSettings) -> dict:
    """A curve for every method and clipping norm, in the order of the runs.

    ``points`` are of all runs that there are. ``best``, ``range`` and ``versus_standard`` are of the ``seeds`` that a
    method has at every rate, those of ``versus_standard`` of the ones that Standard has as well. The mean NLL at a
    rate is infinite where one of these runs diverged.
    """
    metric = "preference_loss" if settings.base.objective.kind == "dpo" else "validation_nll"
    rates = sorted(settings.learning_rates)
    curves = []
    for norm in settings.max_grad_norms or [None]:
        own = [run for run in runs if run.get("max_grad_norm") == norm]
        by_method = {name: _losses(own, name, metric, rates) for name in dict.fromkeys(run["method"] for run in own)}
        for name, losses in by_method.items():
            standard = by_method.get("standard") if name != "standard" else None
            place = {"method": name} | ({} if norm is None else {"max_grad_norm": norm})
            points = [_point(own, name, metric, rate) for rate in rates]
            curves.append(place | {"points": points} | _curve(np.array(rates), losses, standard))
    return {"metric": metric, "within": WITHIN, "learning_rates": rates, "curves": curves}


def _losses(runs: Sequence[dict], method: str, metric: str, rates: Sequence[float]) -> dict[int, list[float]]:
    """By seed, the final loss at every rate, infinite for a diverged run; seeds without a run at some rate are left
    out."""
    found: dict[int, dict[float, float]] = {}
    for run in runs:
        if run["method"] == method and (loss := _loss(run, metric)) is not None:
            found.setdefault(run["seed"], {})[run["learning_rate"]] = loss
    return {seed: [of[rate] for rate in rates] for seed, of in found.items() if all(rate in of for rate in rates)}


def _loss(run: dict, metric: str) -> float | None:
    if run.get("status") == "diverged":
        return math.inf
    value = ((run.get("metrics") or {}).get(metric) or {}).get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _point(runs: Sequence[dict], method: str, metric: str, rate: float) -> dict:
    """What the runs at one rate came to: the loss is of those that ended, the counts of all."""
    mine = [run for run in runs if run["method"] == method and run["learning_rate"] == rate]
    losses = [loss for run in mine if (loss := _loss(run, metric)) is not None]
    ended = [loss for loss in losses if math.isfinite(loss)]
    outliers = [run["outlier_steps"] for run in mine]
    return {
        "learning_rate": rate,
        "n": len(mine),
        "n_diverged": len(losses) - len(ended),
        "mean": mean(ended) if ended else None,
        "sd": stdev(ended) if len(ended) > 1 else None,
        "lowest": min(ended, default=None),
        "highest": max(ended, default=None),
        "outlier_steps": mean(outliers) if outliers else None,
    }


def _curve(rates: ndarray, losses: dict[int, list[float]], standard: dict[int, list[float]] | None) -> dict:
    out: dict = {"seeds": len(losses), "best": None, "range": None, "versus_standard": None}
    if not losses:
        return out
    nll = np.array(list(losses.values()))
    curve = mean_curves(nll, np.full((1, len(nll)), 1 / len(nll)))[0]
    found = widest_range(rates, nll)
    if found is None:
        return out
    at = int(curve.argmin())
    is_end = len(rates) > 1 and at in (0, len(rates) - 1)
    out["best"] = {"learning_rate": float(rates[at]), "value": float(curve[at]), "is_at_end": is_end}
    out["range"] = _range(found, range_intervals(rates, nll)) | {
        "rates": int(((rates >= found.low) & (rates <= found.high)).sum())
    }
    if standard and (common := [seed for seed in losses if seed in standard]):
        mine, other = (np.array([of[seed] for seed in common]) for of in (losses, standard))
        out["versus_standard"] = _versus(rates, mine, other)
    return out


def _range(found: Range, intervals: dict[str, tuple[float, float]] | None) -> dict:
    """A range as stored.

    An interval's end that the grid does not show is null, as both are without an interval.
    """
    values = {"low": found.low, "high": found.high, "factor": found.factor}
    bounds = {
        "low": MOST if found.open_below else EXACT,
        "high": LEAST if found.open_above else EXACT,
        "factor": LEAST if found.open_below or found.open_above else EXACT,
    }
    return {
        name: {"value": value, "is": bounds[name]} | _ends(intervals and intervals[name])
        for name, value in values.items()
    }


def _versus(rates: ndarray, mine: ndarray, other: ndarray) -> dict | None:
    """A method's range over Standard's and the difference of their best losses; None where either has none."""
    ranges = widest_range(rates, mine), widest_range(rates, other)
    if None in ranges:
        return None
    own, standard = ranges
    open_own, open_standard = (each.open_below or each.open_above for each in ranges)
    known = {(False, False): EXACT, (True, False): LEAST, (False, True): MOST, (True, True): UNKNOWN}
    bound = known[open_own, open_standard]
    ratio = {"value": None if bound == UNKNOWN else own.factor / standard.factor, "is": bound}
    interval = ratio_interval(rates, mine, other)
    return {"n": len(mine), "ratio": ratio | _ends(interval), "best": best_difference(mine, other)}


def _ends(interval: tuple[float, float] | None) -> dict:
    low, high = interval or (0.0, math.inf)
    return {"ci_low": low if low > 0 else None, "ci_high": high if math.isfinite(high) else None}
