"""What the commands take that neither train nor measure: ``generate``, ``convert``, ``merge`` and ``rescore``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.evaluation import ImageDecodingSettings, ShortDecodingSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.values import MOST, Name, PathText
from stabledllm.config.typed import Strict


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
    """File of JSON lines for the completions, instead of printing them; for pictures the new folder that they are
    written into."""


class ConvertSettings(Strict):
    """Settings of ``stabledllm convert``."""

    model: PathText
    """A folder, a name on the hub, or a file ``MODEL.gguf``."""
    out: PathText
    """Folder for the converted model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; ``auto``: what config.json says, float32 from GGUF."""
    mask_embedding: Literal["kept", "mean"] | None = None
    """The mask's row: kept as it is, or the mean of the others; a new row is always the mean."""
    anneal_steps: int = Field(0, ge=0)
    """Training steps over which attention grows from causal to full; 0: full at once."""
    layers: int | None = Field(None, ge=1)
    """Keep so many layers, evenly spaced."""


class MergeSettings(Strict):
    """Settings of ``stabledllm merge``."""

    adapter: PathText
    """The folder of an adapter, such as a LoRA run's ``out/model``."""
    base: PathText | None = None
    """Its base model, where it is not where it was."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the written weights; they are added in float32 in any case."""
    out: PathText
    """Folder for the merged model."""


class RescoreSettings(Strict):
    """Settings of ``stabledllm rescore``."""

    rows: PathText
    """File of JSON lines with ``completion`` and ``gold``."""
    task: Name
    """Whose scorer: gsm8k, hitab, openscience, reasoning-gym or synthetic."""
    out: PathText
    """File for the rows with their scores."""
