"""How completions are decoded, how images are drawn, and what ``stabledllm eval`` measures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.values import MOST, PathText, Seed
from stabledllm.config.typed import Strict


class DecodingSettings(Strict):
    """How completions are decoded; part of every result. The defaults are LLaDA's low-confidence decoding, greedy."""

    length: int = Field(128, ge=1, le=MOST)
    """New tokens."""
    steps: int = Field(128, ge=1, le=MOST)
    """Model calls in all."""
    block: int = Field(32, ge=1, le=MOST)
    """Tokens of a semi-autoregressive block; ``length`` for none, as Dream decodes."""
    order: Literal["confidence", "margin", "entropy", "random"] = "confidence"
    """Which masked positions are decided first."""
    schedule: Literal["even", "dream", "origin"] = "even"
    """How many tokens a step decides: ``even``: the same number (LLaDA); ``dream``: Dream's share of those left;
    ``origin``: each with that share as its probability."""
    temperature: float = Field(0.0, ge=0)
    """Temperature at which tokens are drawn; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are chosen among the most probable ones that together have this probability."""
    guidance: float = Field(0.0, ge=0)
    """Strength of classifier-free guidance, which doubles the forwards; 0 for none."""
    threshold: float | None = Field(None, gt=0, le=1)
    """Decide at once every token whose probability is above this. Approximate: fewer model calls, other completions."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Keep keys and values while a block is decoded: ``prefix``: of all before it; ``dual``: of all around it.
    Approximate, except ``prefix`` for models trained in blocks."""
    seed: Seed = 0
    """Seed of what is drawn at random while decoding."""


class ImageDecodingSettings(Strict):
    """How images are drawn: MaskGIT's decoding as MMaDA does it; part of every result."""

    steps: int = Field(18, ge=1, le=MOST)
    """Model calls."""
    guidance: float = Field(3.5, ge=0)
    """Strength of classifier-free guidance, which doubles the forwards; 0 for none."""
    temperature: float = Field(1.0, ge=0)
    """Scale of the noise added to the confidences by which tokens are kept; it falls with the steps."""
    seed: Seed = 0
    """Seed of the drawing; the same for every model and training seed, so that their images are paired."""


class EvalSettings(ModelSettings):
    """Settings of ``stabledllm eval``: one model on test rows, beside the model it was tuned from."""

    base: PathText | None = None
    """The base model of an adapter, where it has moved since the adapter was saved."""
    beside: PathText = "auto"
    """The untuned model: its name, or the folder of its evaluation; ``auto``: an adapter's base, or the model that a
    run started from; ``none``."""
    data: DataSettings = DataSettings()
    """The rows come from ``data.test``, or without it from ``data.train``: from the test split, where there is one."""
    rows: int = Field(128, ge=1, le=MOST)
    """At most this many problems."""
    draws: int = Field(4, ge=1, le=MOST)
    """Views of each row in the NLL."""
    decoding: DecodingSettings = DecodingSettings(length=64, steps=64, block=8)
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn images: a CLIP model's folder or name on the hub."""
    generate_batch: int = Field(32, ge=1, le=MOST)
    """Prompts decoded together; no result depends on it."""
    out: PathText = "runs/eval"
    """Folder of ``eval.json`` and what was generated."""
