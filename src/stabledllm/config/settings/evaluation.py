"""What ``stabledllm eval`` measures."""

from __future__ import annotations

from pydantic import Field

from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.decoding import DecodingSettings, ImageDecodingSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.values import MOST, PathText


class EvalSettings(ModelSettings):
    """``stabledllm eval``: one model on test rows, and what it was tuned from beside it."""

    base: PathText | None = None
    """Of an adapter: its base model, where it is not where it was."""
    beside: PathText = "auto"
    """The untuned model: its name, or the folder of its evaluation; ``auto``: an adapter's base, or the model that a
    run started from; ``none``."""
    data: DataSettings = DataSettings()
    """The rows are those of ``data.test``, without it of ``data.train``: their test split, where they have splits."""
    rows: int = Field(128, ge=1, le=MOST)
    """At most this many problems."""
    draws: int = Field(4, ge=1, le=MOST)
    """Masked copies of each row in the NLL."""
    decoding: DecodingSettings = DecodingSettings(length=64, steps=64, block=8)
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn pictures: a CLIP model's folder or name on the hub."""
    generate_batch: int = Field(32, ge=1, le=MOST)
    """Prompts decoded together; no result depends on it."""
    out: PathText = "runs/eval"
