"""The weightings of mask ratios by name, and the powers that they take; loads no torch."""

from __future__ import annotations

import math

from stabledllm.errors import UserError

WEIGHTINGS = {"elbo": 0.0, "unweighted": 1.0, "power": None, "cosine": None, "bell": 0.0}
"""The power a of each weighting; that of ``power`` is a setting, and ``cosine`` has none."""


def power_of(weighting: str, power: float | None) -> float | None:
    """The power a of a known weighting: its own, the given one for ``power``, None for ``cosine``.

    Raises:
        UserError: ``power`` without a power, or a power that another weighting does not have.

    >>> power_of("unweighted", None), power_of("power", 0.5)
    (1.0, 0.5)
    """
    if weighting == "power":
        if power is None or not 0.0 <= power < math.inf:
            raise UserError(f"objective.power: expected a number of at least 0 for weighting 'power', found {power}.")
        return float(power)
    if power not in (None, own := WEIGHTINGS[weighting]):
        raise UserError(
            f"objective.power: expected none for weighting '{weighting}', found {power:g}; "
            f"a power of one's own takes weighting 'power'."
        )
    return own
