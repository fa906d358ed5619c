"""The texts on their results that ``decompose``, ``fit`` and ``experiment`` print."""

from __future__ import annotations

from collections.abc import Iterator

from stabledllm.reports.tables import (
    components_table,
    equal_compute_table,
    gradient_table,
    metrics_table,
    spread_table,
)

_METRICS = ("validation_nll", "validation_objective", "accuracy", "clip_score")


def decomposition_text(record: dict) -> Iterator[str]:
    """Yields the tables of a decomposition.json, the sentence on whether MIRROR pays, and the notes."""
    yield f"{components_table(record)}\n"
    if record["methods"]:
        yield f"{equal_compute_table(record)}\n"
    if record["gradient"]:
        yield f"{gradient_table(record)}\n"
    if record["mirror"]:
        yield record["mirror"]["sentence"]
    yield from record["notes"][1:]


def fit_details(record: dict) -> Iterator[str]:
    """Yields a p_of_t.json's quality of the output layer as a proxy, where it was checked, and EPR's parameters."""
    if proxy := record.get("proxy"):
        yield (
            f"the output layer for the whole gradient: correlation over t {proxy['correlation']:.3f}, second moment "
            f"{proxy['excess']:+.1%} against p fitted to the gradient itself"
        )
    if parameters := record["parameters"]:
        yield "EPR: " + ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items())


def experiment_text(results: dict) -> Iterator[str]:
    """Yields the tables of a results.json, the statements on the methods, and the notes."""
    measured = {entry["metric"] for entry in results["summary"]}
    for metric in _METRICS:
        if metric in measured:
            yield f"{metrics_table(results, metric)}\n"
            if spread := spread_table(results, metric):
                yield f"{spread}\n"
    yield from results["statements"]
    yield from results["notes"]


def metric_lines(record: dict) -> Iterator[str]:
    """Yields each metric of a run.json or an eval.json with its standard error, and what is counted, in a line."""
    for name, value in record["metrics"].items():
        if isinstance(value, dict) and value.get("value") is not None:
            error = f" ± {value['stderr']:.3g}" if value.get("stderr") is not None else ""
            yield f"{name} {value['value']:.4g}{error}"
        elif isinstance(value, int | float):
            yield f"{name} {value:.4g}"
