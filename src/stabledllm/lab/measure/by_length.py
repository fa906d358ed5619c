"""A, B and C of rows grouped by response length, as ``decomposition.json`` holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stabledllm.variance.components import Decomposition

_GROUPS = 3


def by_length(tokens: Tensor, parts: Callable[[Tensor], Decomposition]) -> list[dict]:
    """A, B and C of rows grouped by response length into three groups of near-equal size, for JSON.

    Rows of equal length stay together, so there are fewer groups where lengths repeat.

    Args:
        tokens: response length of each row, shape (a,).
        parts: takes a bool mask of a group's rows and gives their decomposition.

    >>> from stabledllm.variance.components import NestedLosses, decompose
    >>> losses = torch.tensor([1.0, 3.0, 5.0, 5.0]).double()[:, None, None].expand(4, 2, 2)
    >>> nested = NestedLosses(losses, torch.arange(4), width=None)
    >>> groups = by_length(torch.tensor([2, 2, 9, 9]), lambda rows: decompose(nested.select(rows)))
    >>> [(group["tokens"], group["data"]["value"]) for group in groups]
    [([2, 2], 2.0), ([9, 9], 0.0)]
    """
    edges = torch.quantile(tokens.double(), torch.linspace(0, 1, _GROUPS + 1, dtype=torch.float64)[1:-1])
    group = torch.bucketize(tokens.double(), edges)
    out = []
    for g in group.unique().tolist():
        mine = group == g
        if int(mine.sum()) >= 2:
            of_group = parts(mine).as_dict()
            lengths = tokens[mine]
            out.append(
                {"tokens": [int(lengths.min()), int(lengths.max())], "n": int(mine.sum())}
                | {name: of_group[name] for name in ("mask_pattern", "mask_rate", "data")}
            )
    return out
