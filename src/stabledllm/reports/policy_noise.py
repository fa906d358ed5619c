"""The table of a ``policy_noise.json``."""

from __future__ import annotations

from collections.abc import Iterator

from stabledllm.reports import numbers as fmt
from stabledllm.reports.preferences import ratio_text
from stabledllm.reports.table import Table, filled

_COLUMNS = ("estimator", "gradient", "direction", "off bound", "log-ratio", "loss", "bias", "size", "forwards")


def policy_text(record: dict, wide: bool = True) -> Iterator[str]:
    """Yields the table, what it means, and what to train with."""
    yield f"{policy_table(record).text(wide=wide)}\n"
    yield from map(filled, record["sentences"])


def policy_table(record: dict) -> Table:
    """One row for each estimator: noise over Standard's, and what its mean says of something else than the bound."""
    rows = []
    for row in record["methods"]:
        over = row["over_standard"]
        rows.append(
            (
                row["name"],
                ratio_text(over["gradient"]),
                fmt.estimate(row["direction"]),
                fmt.estimate(row["offset"]),
                ratio_text(over["log_ratio"]),
                ratio_text(over["loss"]),
                fmt.estimate(row["bias"]),
                fmt.estimate(row["size"]),
                str(row["forwards"]),
            )
        )
    first = record["methods"][0]
    note = (
        f"Gradient: its variance for fixed responses over Standard's at equal forwards, 95 % intervals over "
        f"{record['prompts']} prompts (Standard's: {fmt.plain(first['gradient']['value'])} at {first['forwards']} "
        f"forwards a response). Direction: cosine of the mean gradient with that of the bound, 1 but for errors where "
        f"the bound is what is estimated."
    )
    more = (
        f"Off bound: the mean estimate less the bound, nats per token. Log-ratio and loss: variances over Standard's "
        f"({fmt.plain(first['log_ratio']['value'])} and {fmt.plain(first['loss']['value'])}). Bias: how much noise "
        f"adds to the mean loss. Size: norm of the mean gradient over that of the bound."
    )
    return Table("Noise of policy gradients", _COLUMNS, tuple(rows), note, more, answers=3)
