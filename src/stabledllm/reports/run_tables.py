"""Tables of an experiment's runs: what they cost, and every run by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import exact, metric_label
from stabledllm.reports.stored import diverged_at, number, reference_runs, run_methods, run_metrics
from stabledllm.reports.table import Table
from stabledllm.reports.tables import DIVERGED, Name, seeds_of


def cost_table(results: dict, name: Name = str) -> Table:
    """The table of steps, forward passes and time of each method's runs, lowest to highest, without diverged runs."""
    rows, costs = [], _costs_of(results)
    for method in dict.fromkeys([*run_methods(results), *(r["method"] for r in reference_runs(results))]):
        mine = [r for r in (*results["runs"], *reference_runs(results)) if r["method"] == method]
        runs = [r for r in mine if diverged_at(r) is None]
        spans = (_span(runs, key, show) for key, (_, show) in costs.items())
        rows.append((name(method), seeds_of(len(mine), len(mine) - len(runs)), *spans))
    columns = ("method", "runs", "steps", *(f"{title} per run" for key, (title, _) in costs.items() if key != "steps"))
    return Table("What a run costs", columns, tuple(rows))


_COSTS = {
    "steps": ("steps", fmt.count),
    "forward_passes": ("forward passes", fmt.count),
    "rollout_forward_rows": ("forward rows of decoding", fmt.count),
    "seconds": ("time", fmt.duration),
}


def _costs_of(results: dict) -> dict[str, tuple[str, Callable[[object], str]]]:
    """What the runs cost, by its stored name: its title and how it is shown; decoding where responses were learnt
    from."""
    decoded = any(not math.isnan(number(r.get("rollout_forward_rows"))) for r in results["runs"])
    return {key: cost for key, cost in _COSTS.items() if decoded or key != "rollout_forward_rows"}


def _span(runs: list[dict], key: str, show: Callable[[object], str]) -> str:
    values = [number(r.get(key)) for r in runs if not math.isnan(number(r.get(key)))]
    if not values:
        return fmt.NONE
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


_VARIED = {"learning_rate": "learning rate", "max_grad_norm": "clipped at"}
"""What runs of a grid differ in, by its stored name."""


def runs_table(results: dict, name: Name = str) -> Table:
    """The table of every finished run with its metrics, steps, forward passes and time."""
    metrics, costs = run_metrics(results), _costs_of(results)
    runs = [*results["runs"], *reference_runs(results)]
    varied = {key: title for key, title in _VARIED.items() if any(key in r for r in runs)}
    order = {m: i for i, m in enumerate(dict.fromkeys([*run_methods(results), *(r["method"] for r in runs)]))}
    rows = [
        (
            name(r["method"]),
            *(exact(r[key]) if number(r.get(key)) >= 0 else fmt.NONE for key in varied),
            str(r["seed"]),
            *(fmt.with_error((r.get("metrics") or {}).get(m)) for m in metrics),
            _steps_of(r),
            *(show(r.get(key)) for key, (_, show) in costs.items() if key != "steps"),
        )
        for r in sorted(runs, key=lambda r: (order[r["method"]], str(r["seed"]).zfill(9)))
    ]
    columns = (
        "method",
        *varied.values(),
        "seed",
        *(metric_label(m) for m in metrics),
        *(title for title, _ in costs.values()),
    )
    return Table(
        "Every run", columns, tuple(rows), "± is the standard error over the evaluation's rows, not over seeds."
    )


def _steps_of(run: dict) -> str:
    """The run's number of steps, with the step at which it diverged."""
    step, steps = diverged_at(run), fmt.count(run.get("steps"))
    return steps if step is None else f"{steps}, {DIVERGED} at {fmt.count(step)}"
