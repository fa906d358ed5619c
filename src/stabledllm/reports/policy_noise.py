"""The table of a ``policy_noise.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stabledllm.reports import numbers as fmt
from stabledllm.reports.preferences import ratio_text
from stabledllm.reports.stored import value
from stabledllm.reports.table import Table, filled

_ROUNDING = 1e-6
_ANSWERS = 3
"""The first columns, which are shown however narrow the terminal is."""


def policy_text(record: dict, wide: bool = True) -> Iterator[str]:
    """Yields the table, what it means, and what to train with."""
    yield f"{policy_table(record).text(wide=wide)}\n"
    yield from map(filled, record["sentences"])


def policy_table(record: dict) -> Table:
    """One row for each estimator: noise over Standard's, and what its mean says of something else than the bound."""
    columns = _columns(record)
    rows = [tuple(cell(row) for cell in columns.values()) for row in record["methods"]]
    first = record["methods"][0]
    note = (
        f"Gradient: its variance for fixed responses over Standard's at equal forwards, 95 % intervals over "
        f"{record.get('prompts')} prompts (Standard's: {fmt.plain(value(first['gradient']))} at {first['forwards']} "
        f"forwards a response). Direction: cosine of the mean gradient with that of the bound, 1 but for errors where "
        f"the bound is what is estimated."
    )
    more = "Off bound: the mean estimate less the bound, nats per token. "
    if "log-ratio" in columns:
        more += (
            f"Log-ratio and loss: variances over Standard's ({fmt.plain(value(first['log_ratio']))} and "
            f"{fmt.plain(value(first['loss']))}). "
        )
    more += "Bias: how much noise adds to the mean loss. Size: norm of the mean gradient over that of the bound."
    return Table("Noise of policy gradients", tuple(columns), tuple(rows), note, more, answers=_ANSWERS)


def _columns(record: dict) -> dict[str, Callable[[dict], str]]:
    """For each column what is written of an estimator; ratios to Standard's noise where that is not 0."""
    columns = {
        "estimator": lambda row: row["name"],
        "gradient": _over("gradient"),
        "direction": lambda row: fmt.estimate(row["direction"]),
        "off bound": lambda row: fmt.estimate(row["offset"]),
        "log-ratio": _over("log_ratio"),
        "loss": _over("loss"),
        "bias": _bias,
        "size": lambda row: fmt.estimate(row["size"]),
        "forwards": lambda row: str(row["forwards"]),
    }
    shown = {"log-ratio": "log_ratio", "loss": "loss"}
    first = record["methods"][0]
    return {name: cell for name, cell in columns.items() if name not in shown or value(first[shown[name]]) > 0}


def _over(quantity: str) -> Callable[[dict], str]:
    return lambda row: ratio_text(row["over_standard"][quantity])


def _bias(row: dict) -> str:
    """The bias, 0 where it is but rounding."""
    return "0" if abs(value(row["bias"])) < _ROUNDING else fmt.estimate(row["bias"])
