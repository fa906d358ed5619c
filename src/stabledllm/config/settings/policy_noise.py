"""How the noise of policy gradients is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.config.settings.values import MOST, PathText

Preset = Literal["espo", "coupled", "one-step", "unigrpo"]


class PolicyNoiseSettings(GRPOSettings):
    """How the noise of policy gradients is measured; read where ``objective.kind`` is ``grpo``."""

    old: PathText | None = None
    """The policy that drew the responses, for ratios as in later steps on them: a folder, a name on the hub, or a run's
    folder. Without it ``model`` itself, as in the first step, where every ratio on shared draws is 1."""
    reference: PathText | None = None
    """The model that the divergence is from. Needed where ``beta`` is above 0."""
    group: int = Field(4, ge=2, le=MOST)
    """Responses drawn for each prompt, whose rewards are compared with one another."""
    budget: int = Field(6, ge=1, le=MOST)
    """Forwards for each response and model. A published algorithm takes the nearest number that it can; variances are
    then compared at equal forwards."""
    presets: list[Preset] = ["espo", "coupled", "one-step", "unigrpo"]
    """Published estimators to measure beside the methods."""
    prompts: int = Field(12, ge=2, le=MOST)
    """Prompts that every estimator is measured on, of those whose responses have unequal rewards."""
    tries: int = Field(4, ge=1, le=MOST)
    """Prompts that are answered at most, in multiples of ``prompts``, to find as many with unequal rewards."""
    repeats: int = Field(6, ge=3, le=MOST)
    """Steps in which the responses of a prompt are drawn."""
    exact: int = Field(64, ge=4, le=MOST)
    """Forwards for each response of the estimate that the others are held against."""
