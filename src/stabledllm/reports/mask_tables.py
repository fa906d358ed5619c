"""The tables on what A of the gradient is made of, and on the least noise that each class of estimator can reach."""

from __future__ import annotations

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number
from stabledllm.reports.table import Table

_PARTS = (
    ("how many tokens are masked", "count"),
    ("which tokens are targets", "targets"),
    ("which context they see", "context"),
)
_CLASSES = (
    ("one view of a row", "least_one_view"),
    ("balanced views of a row", "least_balanced"),
    ("a partition of a row, at its cost", "least_partition"),
)


def mask_tables(data: dict) -> list[Table]:
    """The two tables of a stored decomposition; none where A of the gradient was not split."""
    split = (data.get("gradient") or {}).get("split")
    if not split:
        return []
    parts = tuple(
        (label, fmt.positive(split.get(name)), fmt.positive(split.get(f"share_of_{name}"))) for label, name in _PARTS
    )
    unit = (split.get("count") or {}).get("unit") or "(nats/param)²"
    rows, forwards = (split.get("count") or {}).get("n"), number(split.get("forwards"))
    made = Table(
        "What A of the gradient is made of",
        ("part of A", unit, "share"),
        parts,
        "The first is removed by exact counts, at no cost; the second by views that mask all tokens equally often; the "
        f"third falls with more forwards alone. On {fmt.count(rows)} rows, {fmt.count(forwards)} forward and backward "
        "passes.",
    )
    least = Table(
        "Least gradient noise of each class of estimator",
        ("class", "÷ Standard"),
        (*((label, fmt.positive(split.get(name))) for label, name in _CLASSES), ("F times the forwards", "1/F of it")),
        "At equal compute, over Standard's A + B: with exact counts, the best density of t and no noise of t. "
        "Balanced: each token is masked equally often, as in a partition, and views are otherwise independent; what "
        "they cost in data noise is left out. A partition has P / k views of k tokens, at that cost, and the noise of "
        "t that all rows do not share; what three tokens do together, which it lowers, is counted in full.",
    )
    return [made, least]
