"""The paper's accuracies beside one's own, for experiments on its tasks."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from statistics import mean, stdev

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number, run_methods, summary_of
from stabledllm.reports.tables import Name, Table


def published() -> dict:
    """The paper's Table 1 by task and method: percent, in the order of its seeds."""
    path = files("stabledllm") / "assets" / "published.json"
    return json.loads(path.read_text(encoding="utf-8"))


def published_table(results: dict, name: Name = str) -> Table | None:
    """Mean and sd of both, in percent; None unless the experiment is on one of the paper's tasks and has accuracies."""
    base = (results.get("config") or {}).get("base") or {}
    task = str((base.get("data") or {}).get("train")).partition(":")[0]
    paper = published()
    theirs = paper["accuracy"].get(task)
    if theirs is None or not any("accuracy" in (run.get("metrics") or {}) for run in results["runs"]):
        return None
    rows = []
    for method in dict.fromkeys((*theirs, *run_methods(results))):
        s, values = summary_of(results, method, "accuracy"), theirs.get(method)
        cells = (fmt.fixed(mean(values), 2), fmt.fixed(stdev(values), 2)) if values else (fmt.NONE, fmt.NONE)
        rows.append((name(method), *cells, _percent(s.get("mean")), _percent(s.get("sd")), str(s.get("n") or 0)))
    columns = ("method", "paper: mean", "paper: sd", "here: mean", "here: sd", "here: seeds")
    seeds = f"{len(paper['seeds'])} seeds"
    note = (
        f"Paper: {paper['source']}, {seeds}. Here: {base.get('model')}. Unlike models or settings are not comparable."
    )
    return Table(f"Accuracy on {task} in percent, beside the paper's", columns, tuple(rows), note)


def _percent(value: object) -> str:
    return fmt.NONE if math.isnan(number(value)) else f"{100 * number(value):.2f}"
