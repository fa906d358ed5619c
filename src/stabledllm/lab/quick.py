"""What ``--quick`` measures: fewer rows and draws, for a coarse answer in about a minute with the shipped model."""

from __future__ import annotations

from collections.abc import Sequence

_PROBE = {"rows": 16, "rates": 6, "masks": 2, "starts": 6}
DECOMPOSE = {
    "rows": 16,
    "rates": 6,
    "masks": 2,
    "steps": 12,
    "probe": _PROBE,
    "grad": {"rows": 32, "view_rows": 6, "split_rows": 0, "rates": 4, "masks": 2, "steps": 4},
}
"""Settings of ``decompose`` and ``recommend``."""
OF_RESPONSES = {"dpo": {"dpo": {"pairs": 6, "repeats": 4}}, "grpo": {"grpo": {"prompts": 6, "repeats": 4}}}
"""The same where the noise of preferences or of policy gradients is measured, by the kind of the objective."""
FIT = {"ppots": _PROBE | {"rows": 24}}
"""Settings of ``fit``."""
NOTE = "Quick: few rows and draws, so that intervals are wide; run without --quick for the answer to act on."
QUICKER = "--quick answers coarsely, from fewer rows and draws"


def quick_decompose(tree: dict, overrides: Sequence[str] = ()) -> dict:
    """The tree of ``decompose`` with what ``--quick`` measures beneath it, by the kind of its objective.

    >>> quick_decompose({}, ["objective.kind=dpo"])
    {'dpo': {'pairs': 6, 'repeats': 4}}
    """
    objective = tree.get("objective")
    kinds = [objective.get("kind")] if isinstance(objective, dict) else []
    kinds += [value for key, _, value in (each.partition("=") for each in overrides) if key == "objective.kind"]
    return under(OF_RESPONSES.get(str(kinds[-1]) if kinds else "", DECOMPOSE), tree)


def under(quick: dict, tree: dict) -> dict:
    """The tree of settings with those of ``--quick`` beneath it: what the tree says itself stays."""
    out = dict(quick)
    for key, value in tree.items():
        out[key] = under(quick[key], value) if isinstance(value, dict) and isinstance(quick.get(key), dict) else value
    return out
