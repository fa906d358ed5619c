"""The texts on their results that ``decompose`` and ``experiment`` print."""

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
