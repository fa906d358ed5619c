"""Small autoregressive models on disk, and the functions that the tests of conversion share."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from stabledllm.models.conversion.convert import convert
from stabledllm.models.conversion.options import ConversionOptions
from stabledllm.models.loading import LoadedModel, load_model
from tests.fakes.converted import ORIGINALS


def converted(tmp_path: Path, original: str = "qwen2", *, config: dict | None = None, **options) -> LoadedModel:
    """A model converted from a small random one, which lies in ``tmp_path/original``, the other in ``tmp_path/out``."""
    folder = ORIGINALS[original](tmp_path / "original", std=0.3, config=config)
    (tmp_path / "out").mkdir()
    convert(str(folder), tmp_path / "out", ConversionOptions(**{"dtype": "float32"} | options))
    return load_model(str(tmp_path / "out"))


def original_of(tmp_path: Path, **options):
    """transformers' own model of the original, in float32."""
    return AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.float32, **options).eval()


def some_ids(rows: int = 2, length: int = 19) -> torch.Tensor:
    """Bytes."""
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(5))
