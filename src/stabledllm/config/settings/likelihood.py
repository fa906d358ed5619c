"""Which likelihoods ``stabledllm eval`` measures besides the bound."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.values import MOST
from stabledllm.config.typed import Strict


class LikelihoodSettings(Strict):
    """The likelihoods of the rows that are measured beside the NLL of the bound, with the guidance of ``decoding``."""

    kinds: list[Literal["elbo", "duel", "multisample", "stepmerge", "tube"]] = []
    """``elbo``: the bound, under guidance; ``duel``: exact for ``decoding``, whose order must not depend on drawn
    tokens; ``multisample``: a tighter bound of several orders; ``tube``: a bound from above; ``stepmerge``: that of a
    few parallel steps."""
    orders: int = Field(8, ge=1, le=MOST)
    """Random orders of each row; ``multisample`` and ``tube`` take a forward for each token of each order."""
    segments: int = Field(8, ge=1, le=MOST)
    """Parallel steps of ``stepmerge``, each a forward of every order."""
