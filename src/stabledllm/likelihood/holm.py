"""Holm's correction of p values, where several comparisons are made at once."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values of several comparisons, adjusted so that the chance of any false finding stays at the level.

    The least of K is multiplied by K, the next by K - 1 and so on, and none becomes less than one before it. None stays
    None and is not counted as a comparison. Source: Holm (1979).

    >>> holm([0.04, None, 0.01, 0.03])
    [0.06, None, 0.03, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    least = 0.0
    for place, (p, i) in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p))
        out[i] = least
    return out
