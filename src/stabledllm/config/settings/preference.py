"""Training on preferences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.values import MOST, PathText
from stabledllm.config.typed import Strict

OF_THE_POLICY = ("auto", "copy", "adapter", "kept")
"""The references that are the policy as it was before its first step; any other is the name of a model."""


class DPOSettings(Strict):
    """Direct preference optimisation on bounds of the log-likelihood; read where ``objective.kind`` is ``dpo``."""

    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Scale of the margin, on log-ratios in nats of a whole response, as LLaDA2 and DPO itself; VRPO takes 0.2."""
    sft: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the chosen response's NLL bound per token, added to the loss; VRPO takes 0.05."""
    budget: int = Field(8, ge=1, le=MOST)
    """Forwards for each response and model; the method's views must divide it."""
    correction: Literal["none", "jackknife"] = "none"
    """``jackknife`` takes off the bias that the noise of the bounds gives the loss; it needs at least two replicates (a
    budget of 4, or of any independent draws)."""
    reference: PathText = "auto"
    """The model that the policy is held against: ``copy``, a frozen copy, its memory again; ``adapter``, the model with
    its adapters switched off; ``kept``, values computed before the first step; ``auto``, ``adapter`` where adapters are
    trained, else ``copy``; or another model, by folder, name on the hub or a run's folder."""
    tokens_per_forward: int = Field(8192, ge=1, le=MOST)
    """Padded tokens of one forward pass, which has a backward pass of its own; changes memory and speed alone."""

    def held_against(self, *, adapters: bool) -> str:
        """The reference without ``auto``.

        >>> DPOSettings().held_against(adapters=True), DPOSettings(reference="tiny").held_against(adapters=True)
        ('adapter', 'tiny')
        """
        return self.reference if self.reference != "auto" else "adapter" if adapters else "copy"


class PairNoiseSettings(Strict):
    """How the noise of preferences is measured; read where ``objective.kind`` is ``dpo``."""

    reference: PathText | None = None
    """The model that ``model`` is held against: a folder, a name on the hub, or a run's folder. Needed."""
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Scale of the margin."""
    budget: int = Field(4, ge=1, le=MOST)
    """Forwards for each response and model, the same for every method."""
    pairs: int = Field(16, ge=2, le=MOST)
    """Pairs that every method is measured on."""
    repeats: int = Field(8, ge=3, le=MOST)
    """Steps in which each pair is drawn."""
