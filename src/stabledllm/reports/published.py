"""The table of the paper's results beside one's own, for experiments on its tasks."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from statistics import mean, stdev

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number, run_methods, summary_of
from stabledllm.reports.table import Table
from stabledllm.reports.tables import Name


def published() -> dict:
    """The paper's tables by metric, task and method, in the order of its seeds; accuracies in percent."""
    path = files("stabledllm") / "assets" / "published.json"
    return json.loads(path.read_text(encoding="utf-8"))


def published_table(results: dict, name: Name = str) -> Table | None:
    """The table of means and sds of both; None unless the experiment has one of the paper's tasks and its metric."""
    base = (results.get("config") or {}).get("base") or {}
    task = str((base.get("data") or {}).get("train")).partition(":")[0]
    paper = published()
    metric = "clip_score" if task in paper["clip_score"] else "accuracy"
    theirs = paper[metric].get(task)
    if theirs is None or not any(metric in (run.get("metrics") or {}) for run in results["runs"]):
        return None
    scale, unit = (1, "CLIP score") if metric == "clip_score" else (100, "Accuracy")
    rows = []
    for method in dict.fromkeys((*theirs, *run_methods(results))):
        s, values = summary_of(results, method, metric), theirs.get(method)
        cells = (fmt.fixed(mean(values), 2), fmt.fixed(stdev(values), 2)) if values else (fmt.NONE, fmt.NONE)
        own_cells = (_scaled(s.get("mean"), scale), _scaled(s.get("sd"), scale), str(s.get("n") or 0))
        rows.append((name(method), *cells, *own_cells))
    columns = ("method", "paper: mean", "paper: sd", "here: mean", "here: sd", "here: seeds")
    source = paper["clip_source" if metric == "clip_score" else "source"]
    note = (
        f"Paper: {source}, {len(paper['seeds'])} seeds. Here: {base.get('model')}. Unlike models or settings are not "
        f"comparable."
    )
    title = f"{unit} on {task}{' in percent' if scale == 100 else ''}, beside the paper's"
    return Table(title, columns, tuple(rows), note)


def _scaled(value: object, scale: int) -> str:
    return fmt.NONE if math.isnan(number(value)) else f"{scale * number(value):.2f}"
