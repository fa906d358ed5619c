"""What ``--quick`` measures: fewer rows and draws, for a coarse answer in about a minute with the shipped model."""

from __future__ import annotations

_PROBE = {"rows": 16, "rates": 6, "masks": 2, "starts": 6}
DECOMPOSE = {
    "rows": 16,
    "rates": 6,
    "masks": 2,
    "steps": 12,
    "probe": _PROBE,
    "grad": {"rows": 32, "view_rows": 6, "rates": 4, "masks": 2, "steps": 4},
}
"""Settings of ``decompose`` and ``recommend``."""
FIT = {"ppots": _PROBE | {"rows": 24}}
"""Settings of ``fit``."""
NOTE = "Quick: few rows and draws, so that intervals are wide; run without --quick for the answer to act on."
QUICKER = "--quick answers coarsely, from fewer rows and draws"


def under(quick: dict, tree: dict) -> dict:
    """The tree of settings with those of ``--quick`` beneath it: what the tree says itself stays."""
    out = dict(quick)
    for key, value in tree.items():
        out[key] = under(quick[key], value) if isinstance(value, dict) and isinstance(quick.get(key), dict) else value
    return out
