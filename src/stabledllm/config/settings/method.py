"""The method, the objective, and the density p(t) that a method may fit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stabledllm.config.objectives import NAMED
from stabledllm.config.settings.values import MOST
from stabledllm.config.typed import Strict

_LATER = {"window": None, "corrected": False, "bell": None, "tokens": "all"}
"""Keys of the objective that older records lack, with what they say by that."""


class MethodSettings(Strict):
    """Options of the parts of a method; each acts only where its part is named."""

    strata: int | None = Field(None, ge=1, le=MOST)
    """Strata of ``strats``; without it the square root of the step's rows, rounded up."""
    clip_low: float = 0.3
    """Lowest mask ratio of ``clipped``."""
    clip_high: float = 0.8
    """Highest mask ratio of ``clipped``."""
    isad_delta: float = 0.2
    """What ``isad`` adds to the mask probability of answer delimiters."""
    mirror_below: float = 1.0
    """Mask ratio from which ``mirror`` leaves out its second view."""
    ema_bins: int = Field(10, ge=2, le=MOST)
    """Equal bins of t, in each of which ``ema`` averages the loss."""
    bell: float = 2.0
    """Both parameters of the Beta density, at least 1, from which ``bell`` draws t, mixed with 5 % of the uniform."""


class ObjectiveSettings(Strict):
    """The objective that training minimises."""

    kind: Literal["masked", "dpo", "grpo"] = "masked"
    """What is learnt from: masked tokens, as the keys below say (``masked``); pairs of responses, one of them better
    (``dpo``, with the keys ``dpo.*``); rewards of the model's own responses (``grpo``, policy gradients, with
    ``grpo.*``)."""
    name: (
        Literal[
            "elbo", "masked-mean", "masked-mean-row", "llada2", "fast-dllm", "sdar", "bd3lm", "bell",
            "window-generation", "window-discriminative", "cart", "lift", "gift",
        ]
        | None
    ) = None  # fmt: skip
    """An objective by the name of whom it is from, which stands for keys below (docs/objectives.md)."""
    weighting: Literal["elbo", "unweighted", "power", "cosine", "bell"] = "elbo"
    """Masked tokens weigh p_mask^(a - 1): a = 0 for ``elbo``, 1 for ``unweighted``, ``power`` for ``power``.
    ``cosine``: MMaDA's objective for images, the mean over round(P cos(pi u / 2)) masked tokens. ``bell``: mask ratios
    from a bell-shaped density, with the weight 1 / p_mask of ``elbo``."""
    power: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The exponent a >= 0 of weighting ``power``; needed there and allowed nowhere else."""
    normalization: Literal["row", "token", "masked"] = "row"
    """Mean over the step's rows, as in the paper, over its maskable tokens, or over its masked ones (their expected
    number)."""
    eps: float = Field(1e-3, ge=0, lt=1)
    """Least masking probability: p_mask = (1 - eps) t + eps."""
    window: list[float] | None = None
    """Mask ratios from this range alone, such as ``[0.3, 0.8]``; without it from all of [0, 1]."""
    corrected: bool = False
    """With ``window``: the bound's own part from those ratios, its width times the mean over them."""
    bell: list[float] | None = None
    """The parameters a and b, each at least 1, of the Beta density of weighting ``bell``; without it ``[2, 2]``."""
    tokens: Literal["all", "cart", "lift", "gift"] = "all"
    """Single tokens beside the mask ratio: ``cart`` weighs a masked token by the visible ones near it, ``lift`` chooses
    easy ones at high mask ratios and hard ones at low, ``gift`` masks uncertain ones more often; ``all`` does none."""

    @model_validator(mode="after")
    def _named(self) -> ObjectiveSettings:
        for key, value in NAMED[self.name].keys.items() if self.name else ():
            if key not in self.model_fields_set:  # another value is refused where keys are checked against each other
                self.__dict__[key] = value
        if self.weighting == "bell" and self.bell is None:
            self.__dict__["bell"] = [2.0, 2.0]  # that of the library, which a test holds this to
        return self

    @property
    def keys(self) -> dict[str, Any]:
        """All that decides a number: neither the name nor keys that change nothing, which older records lack."""
        return {
            key: value
            for key, value in self.model_dump().items()
            if key not in ("name", "kind") and value != _LATER.get(key, ...)
        }


class PPOTSSettings(Strict):
    """The probe and the fit of p(t).

    The paper's probe is a grid of 15 rows x 70 rates x 15 masks, 15,750 forwards. Many rows with few masks find p* at
    least as exactly with a fifth of them (``benchmarks/probe_error.py``).
    """

    design: Literal["grid", "stratified"] = "stratified"
    """``stratified``: each row at mask ratios of its own, one per cell of t; ``grid``: all rows at the cells'
    midpoints."""
    rows: int = Field(112, ge=2, le=MOST)
    """Rows of the probe."""
    rates: int = Field(8, ge=4, le=MOST)
    """Equal cells of t; the lowest is split further (into 7 of them for 8, so that there are 14 cells)."""
    masks: int = Field(2, ge=2, le=MOST)
    """Masks per row and cell."""
    starts: int = Field(20, ge=1, le=MOST)
    """Starting points of the fit of the EPR curve."""
    family: Literal["epr", "tabulated"] = "epr"
    """``epr``: the paper's curve, or the smoothed points where it does not fit; ``tabulated``: the smoothed points."""
    uniform_share: float = Field(0.05, ge=0, le=1)
    """Defensive mixture: bounds every weight by 1 / uniform_share."""
    check_proxy: bool = False
    """For ``ppots-head``: measure the whole gradient as well, and record how well the output layer stands for it."""


class AdaptiveSettings(Strict):
    """How p(t) follows the training losses, for methods with ``adaptive``."""

    every: int = Field(25, ge=1, le=MOST)
    """Optimizer steps between refits of p(t)."""
    half_life: float = Field(100.0, gt=0)
    """Optimizer steps after which a loss counts half."""
    rates: int = Field(12, ge=2, le=MOST)
    """Equal cells of t whose second moments are kept; the lowest is split further."""
    uniform_share: float = Field(0.05, ge=0, le=1)
    """Defensive mixture: bounds every weight by 1 / uniform_share."""
