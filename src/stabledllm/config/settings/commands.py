"""What the commands take that neither train nor measure: ``generate``."""

from __future__ import annotations

from pydantic import Field

from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.evaluation import ImageDecodingSettings, ShortDecodingSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.values import MOST, PathText


class GenerateSettings(ModelSettings):
    """Settings of ``stabledllm generate``."""

    base: PathText | None = None
    """The base model of an adapter, where it has moved since the adapter was saved."""
    decoding: ShortDecodingSettings = ShortDecodingSettings()
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    data: DataSettings = DataSettings()
    """``system_prompt`` and ``few_shot`` stand before every prompt, ``format`` and ``columns`` read the rows of a file
    of prompts; for pictures ``image``, where the model does not say it."""
    generate_batch: int = Field(32, ge=1, le=MOST)
    """Prompts decoded together; no completion depends on it."""
    file: PathText | None = None
    """File of prompts: one a line, or rows of JSON lines, JSON, CSV or Parquet; ``-`` for standard input."""
    out: PathText | None = None
    """File of JSON lines for the completions; for pictures the new folder that they are written into."""
