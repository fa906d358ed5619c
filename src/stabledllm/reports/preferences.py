"""The table of a ``preference_noise.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number, value
from stabledllm.reports.table import Table, filled


def preference_text(record: dict) -> Iterator[str]:
    """Yields the table, what it means, and what to train with."""
    yield f"{preference_table(record)}\n"
    yield from map(filled, record["sentences"])


def preference_table(record: dict) -> Table:
    """One row for each estimator: variances over the noise, over Standard's, and the bias of the loss."""
    rows = []
    for row in record["methods"]:
        over = row["over_standard"]
        ratios = [ratio_text(over[name]) for name in ("margin", "loss", "gradient")]
        rows.append((row["name"], *ratios, fmt.plain(value(row["bias"]))))
    first = record["methods"][0]
    note = (
        f"Variances for a fixed pair over Standard's, at {first['forwards']} forwards a response; 95 % intervals over "
        f"{record.get('pairs')} pairs. Standard's: margin {fmt.plain(value(first['margin']))}, loss "
        f"{fmt.plain(value(first['loss']))}, gradient {fmt.plain(value(first['gradient']))}. Bias: how much noise "
        f"adds to the mean loss."
    )
    return Table("Noise of preferences", ("method", "margin", "loss", "gradient", "bias"), tuple(rows), note)


def ratio_text(ratio: dict) -> str:
    """A ratio of variances with its interval, where that is known."""
    size, low, high = (number(ratio.get(name)) for name in ("value", "ci_low", "ci_high"))
    if math.isnan(size):
        return "unknown"
    ends = "" if math.isnan(low + high) else f" ({low:.2g} to {high:.2g})"
    return f"{size:.3g}{ends}"
