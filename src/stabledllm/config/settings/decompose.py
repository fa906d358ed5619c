"""Settings of ``stabledllm decompose`` and ``recommend``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.method import MethodSettings, ObjectiveSettings, PPOTSSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.policy_noise import PolicyNoiseSettings
from stabledllm.config.settings.preference import PairNoiseSettings
from stabledllm.config.settings.values import MOST, PathText, Seed
from stabledllm.config.typed import Strict


def _none_or_4(rows: int) -> int:
    if 0 < rows < 4:
        raise PydanticCustomError("too_few", "expected 0, or at least 4 for an error, found {rows}", {"rows": rows})
    return rows


class GradientSettings(Strict):
    """How the noise of the gradient is measured."""

    rows: int = Field(384, ge=4, le=MOST)
    """Rows that A, B, C and every single-view method are measured on; in blocks, single blocks for A and B."""
    view_rows: int = Field(16, ge=4, le=MOST)
    """Rows that each method of several views, or with a masker of its own, is measured on; in blocks none, as there all
    are measured on drawn steps."""
    rates: int = Field(4, ge=2, le=MOST)
    """Equal cells of t; the lowest is split further."""
    masks: int = Field(2, ge=2, le=MOST)
    """Masks per row and cell; up to three times as many where t is small."""
    split_rows: Annotated[int, AfterValidator(_none_or_4)] = Field(24, ge=0, le=MOST)
    """Rows, the first of ``rows``, on which A is split into how many tokens are masked, which are targets and which
    context they see; 0: none, as in blocks."""
    steps: int = Field(16, ge=4, le=MOST)
    """Training steps drawn for each method: raw, clipped, and as Adam's update."""
    clip: float = Field(1.0, gt=0)
    """Norm to which the optimizer's gradients are clipped."""
    parameters: list[str] | None = None
    """Patterns of the parameters whose gradient is measured, such as ``head.*``; without it all trained ones."""
    projection: Literal["auto", "exact", "sketch"] = "auto"
    """``exact``: whole gradients; ``sketch``: a seeded random projection; ``auto``: projected where they do not fit."""


class DecomposeSettings(ModelSettings):
    """Settings of ``stabledllm decompose``: how much is drawn for each part of the answer."""

    data: DataSettings = DataSettings()
    method_options: MethodSettings = MethodSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    block_size: int | None = Field(None, ge=1, le=MOST)
    """As in training: response tokens per block; without it the blocks are the model's own, if it has any."""
    block_start: Literal["noisy", "clean"] = "noisy"
    """As in training: what predicts a block's first token where logits are shifted (Fast-dLLM v2)."""
    dpo: PairNoiseSettings = PairNoiseSettings()
    grpo: PolicyNoiseSettings = PolicyNoiseSettings()
    rows: int = Field(48, ge=2, le=MOST)
    """Rows of the nested design."""
    rates: int = Field(12, ge=2, le=MOST)
    """Mask ratios per row of the nested design."""
    masks: int = Field(3, ge=2, le=MOST)
    """Masks per mask ratio of the nested design."""
    design: Literal["cells", "iid"] = "cells"
    """``cells``: one ratio in each cell of t, which tames the tail near t = 0; ``iid``: the plain nested design."""
    probe: PPOTSSettings = PPOTSSettings(rows=24, rates=16, masks=3)
    """The probe behind g(t), v(t), rho(t), p(t) and the predicted variances."""
    methods: list[str] = [
        "standard",
        "ppots",
        "mirror",
        "ppots+mirror",
        "multisample",
        "strats",
        "fixedcount",
        "lowdisc+fixedcount",
        "lowdisc+ppots+fixedcount",
        "lowdisc+ppots-head+fixedcount",
        "lowdisc+complement",
        "clipped",
    ]
    """Methods to compare; Standard is always among them."""
    forwards: int = Field(32, ge=2, le=MOST)
    """Forward passes of a training step; the same number for every method."""
    steps: int = Field(48, ge=4, le=MOST)
    """Training steps drawn to measure each method's variance."""
    gradient: bool = False
    """Measure the gradient's noise as well."""
    grad: GradientSettings = GradientSettings()
    seed: Seed = 0
    """Seed of everything that is drawn."""
    out: PathText = "runs/decompose"
    """Folder of ``decomposition.json`` and its figures, or of the record on preferences or policy gradients."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> DecomposeSettings:
        form = {"dpo": "preference", "grpo": "prompts"}.get(self.objective.kind)
        if form and self.data.format is None:
            self.data.__dict__["format"] = form
        return self
