"""The texts on their results that ``decompose``, ``fit`` and ``experiment`` print."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stabledllm.reports import numbers as fmt
from stabledllm.reports.averages import average_tables
from stabledllm.reports.block_tables import blocks_sentences, blocks_table
from stabledllm.reports.labels import METRIC_LABELS
from stabledllm.reports.mask_tables import mask_tables
from stabledllm.reports.rates import rate_tables
from stabledllm.reports.saved import saved_metrics, saved_sentences, saved_table
from stabledllm.reports.stored import number, value
from stabledllm.reports.table import filled
from stabledllm.reports.tables import (
    components_table,
    equal_compute_table,
    gradient_table,
    metrics_table,
    spread_table,
)


def decomposition_text(record: dict, wide: bool = True) -> Iterator[str]:
    """Yields the tables of a decomposition.json, the sentence on whether MIRROR pays, and the notes.

    Args:
        wide: whether all columns are shown, and not only those that answer and fit the terminal.
    """
    yield f"{components_table(record)}\n"
    if blocks := record.get("blocks"):
        yield f"{blocks_table(blocks)}\n"
        yield "\n".join(map(filled, blocks_sentences(blocks))) + "\n"
    if record["methods"]:
        yield f"{equal_compute_table(record).text(wide=wide)}\n"
    if record["gradient"]:
        yield f"{gradient_table(record).text(wide=wide)}\n"
        yield from (f"{table}\n" for table in mask_tables(record))
    if record["mirror"]:
        yield filled(record["mirror"]["sentence"])
    yield from map(filled, record["notes"][1:])


def fit_details(record: dict) -> Iterator[str]:
    """Yields what is known of a p_of_t.json's density, what it changes on held-out rows last, as the answer."""
    if proxy := record.get("proxy"):
        yield filled(
            f"the output layer for the whole gradient: correlation over t {proxy['correlation']:.3f}, second moment "
            f"{proxy['excess']:+.1%} against p fitted to the gradient itself"
        )
    if parameters := record["parameters"]:
        yield filled("EPR: " + ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items()))
    if told := change_in_words(record):
        yield filled(told)


def change_in_words(record: dict) -> str:
    """A sentence on what a p_of_t.json's density changes on rows that it was not fitted on; empty where unknown."""
    diagnostics = record["diagnostics"]
    change, uniform = diagnostics.get("change") or {}, value(diagnostics.get("variance_uniform"))
    ends = [number(change.get(name)) for name in ("value", "ci_low", "ci_high")]
    if not uniform > 0 or not all(map(math.isfinite, ends)):
        return ""
    ratio, low, high = (max(1 + end / uniform, 0.0) for end in ends)
    what = "variance" if record.get("signal", "loss") == "loss" else "second moment"
    share, _, ends_of_share = fmt.with_interval(ratio, low, high).partition(", ")
    told = f"On rows that it was not fitted on, p(t) has {share} ({ends_of_share}) of uniform t's {what}"
    if high < 1:
        return f"{told}: it lowers it."
    if low > 1:
        return f"{told}: uniform t is better."
    return f"{told}: {change['n']} probed rows do not tell whether it helps; probe more (ppots.rows)."


def experiment_text(results: dict, wide: bool = True) -> Iterator[str]:
    """Yields the tables of a results.json, the statements on the methods, and the notes; ``wide`` as above."""
    measured = {entry["metric"] for entry in results["summary"]}
    if results.get("rates"):
        yield from (f"{table.text(wide=wide)}\n" for table in rate_tables(results))
        measured = set()  # at every learning rate, in the tables above
    told = {entry["metric"] for entry in saved_metrics(results) if entry.get("improves")}
    for metric in METRIC_LABELS:
        if metric in measured:
            yield f"{metrics_table(results, metric).text(wide=wide)}\n"
            if spread := spread_table(results, metric):
                yield f"{spread}\n"
            if (saved := saved_table(results, metric)) and metric in told:
                yield f"{saved.text(wide=wide)}\n"
    for table in average_tables(results):
        yield f"{table.text(wide=wide)}\n"
    yield from map(filled, results.get("advice", []))
    yield from map(filled, saved_sentences(results))
    yield from map(filled, results["statements"])
    yield from map(filled, results["notes"])


def metric_lines(record: dict) -> Iterator[str]:
    """Yields each metric of a run.json or an eval.json with its standard error, and what is counted, in a line."""
    yield from _metric_lines(record["metrics"])
    for average, kept in (record.get("averages") or {}).items():
        yield from _metric_lines(kept["metrics"], f" of {average}")


def _metric_lines(metrics: dict, of: str = "") -> Iterator[str]:
    for name, metric in metrics.items():
        if isinstance(metric, dict) and metric.get("value") is not None:
            error = f" ± {metric['stderr']:.3g}" if metric.get("stderr") is not None else ""
            yield f"{name}{of} {metric['value']:.4g}{error}"
        elif isinstance(metric, int | float):
            yield f"{name}{of} {metric:.4g}"
