"""Training on rewards of the model's own responses (policy gradients)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stabledllm.config.settings.evaluation import DecodingSettings
from stabledllm.config.settings.values import MOST, PathText, Seed
from stabledllm.config.typed import Strict

FORWARDS = {"method": 1, "espo": 2, "coupled": 3, "one-step": 1, "unigrpo": 1}
"""The forwards of one draw of each estimator, of which ``grpo.budget`` is a multiple; of a method, see its views."""
OF_TOKENS = ("coupled", "one-step", "unigrpo")
"""Estimators that are published with a ratio for each token."""
OF_THE_POLICY = ("auto", "copy", "adapter")
"""The references that are the policy as it was before its first step; any other is the name of a model."""


class RolloutSettings(DecodingSettings):
    """How responses are drawn to learn from: as completions are decoded, but at random."""

    temperature: float = Field(1.0, gt=0)
    """Temperature at which tokens are drawn."""
    seed: Seed = 0
    """Added to the run's ``seed``, for what is drawn at random while decoding."""


class GRPOSettings(Strict):
    """Group-relative policy optimisation; read where ``objective.kind`` is ``grpo``."""

    reward: Annotated[list[str], Field(min_length=1)] = ["task"]
    """What a response is worth: ``task`` (1 where the rows' task finds the answer right, else 0), or
    ``FILE.py:FUNCTION`` of your own, which must stand on the command line. Several are added up."""
    reward_weights: list[float] | None = None
    """A weight for each of ``reward``; without it 1 each."""
    group: int = Field(8, ge=2, le=MOST)
    """Responses drawn for each prompt, whose rewards are compared with one another."""
    scale: Literal["group", "none"] = "group"
    """``group``: advantages are divided by the standard deviation of the group's rewards; ``none``: they are not."""
    estimator: Literal["method", "espo", "coupled", "one-step", "unigrpo"] = "method"
    """How the log-likelihood of a response is estimated: by the run's ``method``, or as a published algorithm does."""
    budget: int = Field(2, ge=1, le=MOST)
    """Forwards for each response and model; a multiple of 2 for ``espo`` and of 3 for ``coupled``."""
    ratio: Literal["token", "mean", "sequence"] | None = None
    """Policy over old policy: of each ``token``; of the response, its logarithm divided by the tokens (``mean``), or
    not (``sequence``). Without it the estimator's own, ``mean`` for a method."""
    clip: float = Field(0.2, gt=0, allow_inf_nan=False)
    """How far below 1 a ratio may fall before its gradient ends."""
    clip_high: float | None = Field(None, gt=0, allow_inf_nan=False)
    """How far above 1 it may rise; without it ``clip``."""
    mean: Literal["response", "token"] = "response"
    """With ratios of tokens: the mean over each response first, then over responses; or over all tokens of a step."""
    beta: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the divergence from the reference; 0 needs no reference."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """How that is estimated from the log-ratio d of reference to policy: -d, d²/2, or exp(d) - d - 1."""
    reference: PathText = "auto"
    """``copy``: a frozen copy of the model, its memory again. ``adapter``: the model with its adapters switched off.
    ``auto``: ``adapter`` where adapters are trained, else ``copy``. Else another model. Needed where ``beta`` > 0."""
    inner: int = Field(1, ge=1, le=MOST)
    """Optimizer steps on the same responses, each with draws of its own that policy, old policy and reference share."""
    tokens_per_forward: int = Field(8192, ge=1, le=MOST)
    """Padded tokens of one forward pass, which has a backward pass of its own; changes memory and speed alone."""
    rollout: RolloutSettings = RolloutSettings()
    """How responses are drawn."""
    fill: Literal["length", "answers"] = "length"
    """What stands behind a response that ended, supervised: end tokens up to ``rollout.length``, where the model saw
    masks while it drew it (in blocks: to the end of one), or as behind answers (``data.pad_response_to``)."""

    @property
    def ratio_in_force(self) -> str:
        """The ratio that is taken: the one given, else the estimator's own.

        >>> GRPOSettings().ratio_in_force, GRPOSettings(estimator="coupled").ratio_in_force
        ('mean', 'token')
        """
        return self.ratio or ("token" if self.estimator in OF_TOKENS else "mean")

    def filled_to(self, answers: int, block_size: int | None) -> int:
        """What the tokens of a response that ended are a multiple of.

        Args:
            answers: that of answers.

        >>> GRPOSettings().filled_to(1, None), GRPOSettings().filled_to(1, block_size=8)
        (128, 8)
        >>> GRPOSettings(fill="answers").filled_to(1, None)
        1
        """
        return answers if self.fill == "answers" else block_size or self.rollout.length

    def held_against(self, *, adapters: bool) -> str | None:
        """The reference without ``auto``; None where there is none.

        >>> GRPOSettings().held_against(adapters=True), GRPOSettings(beta=0.1).held_against(adapters=True)
        (None, 'adapter')
        """
        if not self.beta:
            return None
        return self.reference if self.reference != "auto" else "adapter" if adapters else "copy"

    def in_blocks_of(self, size: int | None) -> GRPOSettings:
        """These settings for a model trained in blocks of ``size``, in which its responses are drawn too."""
        rollout = self.rollout.in_blocks_of(size)
        return self if rollout is self.rollout else self.model_copy(update={"rollout": rollout})
