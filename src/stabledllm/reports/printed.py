"""The texts on their results that ``decompose``, ``fit`` and ``experiment`` print."""

from __future__ import annotations

from collections.abc import Iterator

from stabledllm.reports.table import filled
from stabledllm.reports.tables import (
    components_table,
    equal_compute_table,
    gradient_table,
    metrics_table,
    spread_table,
)

_METRICS = ("validation_nll", "validation_objective", "accuracy", "clip_score")


def decomposition_text(record: dict, wide: bool = True) -> Iterator[str]:
    """Yields the tables of a decomposition.json, the sentence on whether MIRROR pays, and the notes.

    Args:
        wide: whether all columns are shown, and not only those that answer and fit the terminal.
    """
    yield f"{components_table(record)}\n"
    if record["methods"]:
        yield f"{equal_compute_table(record).text(wide=wide)}\n"
    if record["gradient"]:
        yield f"{gradient_table(record).text(wide=wide)}\n"
    if record["mirror"]:
        yield filled(record["mirror"]["sentence"])
    yield from map(filled, record["notes"][1:])


def fit_details(record: dict) -> Iterator[str]:
    """Yields a p_of_t.json's quality of the output layer as a proxy, where it was checked, and EPR's parameters."""
    if proxy := record.get("proxy"):
        yield filled(
            f"the output layer for the whole gradient: correlation over t {proxy['correlation']:.3f}, second moment "
            f"{proxy['excess']:+.1%} against p fitted to the gradient itself"
        )
    if parameters := record["parameters"]:
        yield filled("EPR: " + ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items()))


def experiment_text(results: dict, wide: bool = True) -> Iterator[str]:
    """Yields the tables of a results.json, the statements on the methods, and the notes; ``wide`` as above."""
    measured = {entry["metric"] for entry in results["summary"]}
    for metric in _METRICS:
        if metric in measured:
            yield f"{metrics_table(results, metric).text(wide=wide)}\n"
            if spread := spread_table(results, metric):
                yield f"{spread}\n"
    yield from map(filled, results.get("advice", []))
    yield from map(filled, results["statements"])
    yield from map(filled, results["notes"])


def metric_lines(record: dict) -> Iterator[str]:
    """Yields each metric of a run.json or an eval.json with its standard error, and what is counted, in a line."""
    for name, value in record["metrics"].items():
        if isinstance(value, dict) and value.get("value") is not None:
            error = f" ± {value['stderr']:.3g}" if value.get("stderr") is not None else ""
            yield f"{name} {value['value']:.4g}{error}"
        elif isinstance(value, int | float):
            yield f"{name} {value:.4g}"
