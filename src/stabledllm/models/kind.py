"""Which kind of language model an object is, whoever made it."""

from __future__ import annotations


def is_autoregressive(model: object) -> bool:
    """Whether a model predicts each token from those before it alone, and not a masked one from its whole row."""
    return bool(getattr(model, "autoregressive", False))
