"""How much of Standard's compute a method needs: its final metric, read off the curve of Standard over its forwards.

Standard is trained at several budgets with the seeds of the methods. Its mean metric is interpolated linearly in the
logarithm of its forward passes, and C is where that line has the method's mean: the forwards of a Standard that ends
where the method ends. The method, which made F, needs F / C of Standard's forwards.

**Why straight pieces and no fitted law.** Between neighbouring budgets any smooth curve is nearly straight in log C:
for a + b / C a chord over 1 to 1.25 times the forwards moves a reading by at most 0.6 %, one over 1.5 to 2 by at most
1 %. No form is assumed beyond that, and at 1 times its forwards the line is Standard itself, so that a method's
interval holds 1 exactly where its paired t test against Standard finds no difference.

**The interval.** For any budget C the value of the line minus the method's is one number a seed, linear in that seed's
runs. Where C is the true reading its mean over seeds is 0, and a paired t test accepts it with 95 %: the interval holds
all C that are accepted (Fieller's construction). It carries the noise of both the curve and the method and what they
share through their seeds, and is exact for normal values with any number of seeds; a bootstrap over 3 seeds holds the
truth 7 times in 10. Nothing is extrapolated: a reading, or an end, that lies beyond the budgets is said to lie there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from stabledllm.experiment.reference import multiple_of
from stabledllm.experiment.saved_in_words import sentences
from stabledllm.experiment.saved_time import seconds_ratio, wall_time
from stabledllm.experiment.spread import values_of
from stabledllm.experiment.summary import paired, t_interval
from stabledllm.noise.parts import STANDARD
from stabledllm.reports.labels import LOWER_IS_BETTER
from stabledllm.stats.estimate import student

LEVEL = 0.05
Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class Budget:
    """Standard at one budget: what it spent, and what its runs ended with."""

    multiple: float
    """Of Standard's own forward passes."""
    forwards: float
    """Forward passes of a run, counted."""
    values: Mapping[int, float]
    """The final metric by seed."""


@dataclass(frozen=True)
class Reading:
    """A method's final metric read off Standard's curve: the share of Standard's forwards that it needs."""

    n: int
    """Seeds that the method and every budget have in common."""
    least: float
    """The least share that can be read, at the longest Standard."""
    most: float
    """The largest, at the shortest."""
    value: float | None
    """The share; None where it lies beyond the budgets, or where Standard's curve is flat at the method's mean."""
    side: str
    """``inside``, or ``less`` or ``more`` where it lies below ``least`` or above ``most``."""
    ends: tuple[float | None, float | None] | None
    """The 95 % interval, None for an end beyond the budgets; None as a whole for fewer than 2 unlike seeds."""

    def as_dict(self) -> dict:
        """The JSON form; ``known`` says whether there is an interval, an end of which may lie beyond the budgets."""
        low, high = self.ends or (None, None)
        share = {"value": self.value, "ci_low": low, "ci_high": high, "known": self.ends is not None}
        return share | {"side": self.side, "least": self.least, "most": self.most, "n": self.n}


def read_off(curve: Sequence[Budget], values: Mapping[int, float], forwards: float, lower: bool) -> Reading | None:
    """The share of Standard's forwards that a method needs; None without a common seed or for fewer than 2 budgets.

    Args:
        curve: Standard's budgets, the shortest first. values: the method's final metric by seed.
        forwards: forward passes of one of its runs. lower: whether a lower metric is the better one.
    """
    seeds = [seed for seed in values if all(seed in budget.values for budget in curve)]
    if not seeds or len(curve) < 2:
        return None
    sign = 1.0 if lower else -1.0
    # Standard minus the method, positive where Standard ends worse: budgets x seeds.
    worse = np.array([[sign * (budget.values[seed] - values[seed]) for seed in seeds] for budget in curve]).round(12)
    logs = np.log([budget.forwards for budget in curve])
    at, ends = _crossing(logs, worse.mean(1)), _accepted(logs, worse)
    if ends is not None and math.isfinite(at):  # the line is held to fall, the accepted budgets are not
        ends = tuple(end if end is None else pick(end, at) for end, pick in zip(ends, (min, max), strict=True))

    def share(log: float | None) -> float | None:
        return None if log is None else forwards / math.exp(log)

    return Reading(
        n=len(seeds),
        least=forwards / curve[-1].forwards,
        most=forwards / curve[0].forwards,
        value=share(at) if math.isfinite(at) else None,
        side="less" if at == math.inf else "more" if at == -math.inf else "inside",
        ends=None if ends is None else (share(ends[1]), share(ends[0])),
    )


def falling(means: Sequence[float]) -> np.ndarray:
    """The values that never rise and are nearest to the means in squares: one that rises is pooled with those before.

    >>> falling([3.0, 1.0, 2.0, 0.0]).tolist()
    [3.0, 1.5, 1.5, 0.0]
    """
    pools: list[tuple[float, int]] = []
    for value in means:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (last, many), (before, more) = pools.pop(), pools.pop()
            pools.append(((last * many + before * more) / (many + more), many + more))
    return np.array([value for value, many in pools for _ in range(many)])


def _crossing(logs: np.ndarray, worse: np.ndarray) -> float:
    """The log forwards at which the line through Standard's means, held to fall, has the method's.

    It is infinite where the line does not reach it, and NaN where it has it at every budget, which tells none.
    """
    line = falling(worse)
    if line[0] < 0 or line[-1] > 0:
        return -math.inf if line[0] < 0 else math.inf
    if line[0] == line[-1]:
        return math.nan
    return float(np.interp(0.0, -line, logs))


def _accepted(logs: np.ndarray, worse: np.ndarray) -> Ends | None:
    """The lowest and the highest log forwards at which a paired t test accepts the method's mean.

    An end is None where even the shortest Standard is not surely worse, or the longest not surely better, than the
    method. None as a whole where the seeds show no spread.
    """
    n = worse.shape[1]
    if n < 2 or not np.ptp(worse, axis=1).any():
        return None
    means, covariance = worse.mean(1), np.atleast_2d(np.cov(worse))
    factor = student(n - 1) ** 2 / n
    error = np.sqrt(factor * np.diag(covariance))
    inside: list[float] = []
    for i in range(len(logs) - 1):
        for part in _accepted_between(means[i : i + 2], factor * covariance[i : i + 2, i : i + 2]):
            inside.append(float(logs[i] + part * (logs[i + 1] - logs[i])))
    low = None if means[0] <= error[0] else min(inside, default=float(logs[-1]))
    high = None if means[-1] >= -error[-1] else max(inside, default=float(logs[0]))
    return low, high


def _accepted_between(means: np.ndarray, squares: np.ndarray) -> list[float]:
    """The ends of what is accepted between two budgets, as shares of the way: where mean² <= t² variance / n.

    Args:
        means: of the difference at the two. squares: t² / n times their covariance, shape (2, 2).
    """
    (a, b), ((p, r), (_, q)) = means, squares
    # (a + (b - a) w)² - (p (1 - w)² + 2 r w (1 - w) + q w²), by powers of w
    powers = [(b - a) ** 2 - (p - 2 * r + q), 2 * a * (b - a) - 2 * (r - p), a**2 - p]
    roots = np.roots(powers) if np.any(np.abs(powers[:2]) > 0) else np.array([])
    real = [float(root.real) for root in roots if abs(root.imag) < 1e-12 and 0 <= root.real <= 1]
    return [*real, *(w for w in (0.0, 1.0) if np.polyval(powers, w) <= 0)]


def standard_curve(runs: Sequence[dict], reference: Sequence[dict], metric: str) -> list[Budget]:
    """Standard's budgets with a run that has the metric, the shortest first; of the seeds of all, if any.

    Args:
        runs: the methods' runs, Standard's among them. reference: Standard's at other budgets.
    """
    every = [run for run in (*runs, *reference) if run["method"] == STANDARD or multiple_of(run["method"]) is not None]
    budgets = []
    for name in dict.fromkeys(run["method"] for run in every):
        values = values_of(every, name, metric)
        if values:
            spent = mean(r["forward_passes"] for r in every if r["method"] == name and r["seed"] in values)
            budgets.append(Budget(multiple_of(name) or 1.0, spent, values))
    if common := _common(budgets):
        budgets = [replace(budget, values={seed: budget.values[seed] for seed in common}) for budget in budgets]
    return sorted(budgets, key=lambda budget: budget.forwards)


def until_best(curve: Sequence[Budget], lower: bool) -> list[Budget]:
    """The budgets up to the best one, where a longer Standard is surely worse (it overfits); else all of them."""
    common = _common(curve)
    if len(common) < 2:
        return list(curve)
    best = (min if lower else max)(curve, key=lambda budget: mean(budget.values[seed] for seed in common))
    longer = [budget for budget in curve if budget.forwards > best.forwards]
    p_values = [_p_value(budget, best, common) for budget in longer]
    surely = any(p is not None and p < LEVEL / len(longer) for p in p_values)
    return [budget for budget in curve if budget.forwards <= best.forwards] if surely else list(curve)


def is_told_to_improve(curve: Sequence[Budget], lower: bool) -> bool:
    """Whether the longest Standard is surely better than the shortest, without which nothing can be read off."""
    common = _common(curve)
    if len(curve) < 2 or len(common) < 2:
        return False
    found = paired(*({seed: curve[i].values[seed] for seed in common} for i in (-1, 0)))
    return found["p_value"] is not None and found["p_value"] < LEVEL and (found["difference"] < 0) == lower


def _common(curve: Sequence[Budget]) -> list[int]:
    return [seed for seed in curve[0].values if all(seed in budget.values for budget in curve)] if curve else []


def _p_value(one: Budget, other: Budget, seeds: Sequence[int]) -> float | None:
    return paired(*({seed: budget.values[seed] for seed in seeds} for budget in (one, other)))["p_value"]


def compute_saved(runs: Sequence[dict], reference: Sequence[dict]) -> dict:
    """The ``compute_saved`` of ``results.json``: for each metric Standard's curve, and what each method needs of it.

    Args:
        runs: the methods' runs, Standard's among them. reference: Standard's at other budgets.
    """
    methods = [name for name in dict.fromkeys(run["method"] for run in runs) if name != STANDARD]
    metrics = [_of_metric(runs, reference, metric, methods) for metric in LOWER_IS_BETTER]
    metrics = [entry for entry in metrics if entry]
    return {"metrics": metrics, "sentences": sentences(metrics)}


def _of_metric(runs: Sequence[dict], reference: Sequence[dict], metric: str, methods: Sequence[str]) -> dict | None:
    lower = LOWER_IS_BETTER[metric]
    every = standard_curve(runs, reference, metric)
    used = until_best(every, lower)
    if len(every) < 2:
        return None
    return {
        "metric": metric,
        "curve": [_point(budget, budget in used) for budget in every],
        "improves": is_told_to_improve(used, lower),
        "methods": [found for name in methods if (found := _of_method(runs, used, name, metric))],
    }


def _point(budget: Budget, used: bool) -> dict:
    low, high = t_interval(list(budget.values.values()))
    value = {"mean": mean(budget.values.values()), "ci_low": low, "ci_high": high, "n": len(budget.values)}
    return {"multiple": budget.multiple, "forward_passes": budget.forwards, "used": used} | value


def _of_method(runs: Sequence[dict], curve: Sequence[Budget], method: str, metric: str) -> dict | None:
    values = values_of(runs, method, metric)
    mine = [run for run in runs if run["method"] == method and run["seed"] in values]
    if not mine:
        return None
    forwards = mean(run["forward_passes"] for run in mine)
    reading = read_off(curve, values, forwards, LOWER_IS_BETTER[metric])
    if reading is None:
        return None
    share, pace = reading.as_dict(), seconds_ratio(runs, method)
    probe = max(run.get("probe_forward_passes") or 0 for run in mine)
    ended = mean(value for seed, value in values.items() if seed in curve[0].values)
    own = {"method": method, "mean": ended, "forward_passes": forwards, "probe_forward_passes": probe}
    return own | share | {"seconds_per_forward": pace, "wall_time": wall_time(share, pace)}
