"""The ends of a stored figure's 95 % interval."""

from __future__ import annotations


def ends_of(found: dict) -> tuple[float | None, float | None]:
    """The interval as it is stored; an estimate stores none that is 1.96 errors to either side; else (None, None).

    >>> ends_of({"value": 2.0, "stderr": 0.5, "ci_low": 0.9, "ci_high": 3.1})
    (0.9, 3.1)
    >>> ends_of({"value": 2.0, "stderr": 0.5})
    (1.02, 2.98)
    >>> ends_of({"value": 2.0, "stderr": None})
    (None, None)
    """
    low, high = found.get("ci_low"), found.get("ci_high")
    if low is None and high is None and found.get("value") is not None and found.get("stderr"):
        half = 1.96 * found["stderr"]
        return found["value"] - half, found["value"] + half
    return low, high
