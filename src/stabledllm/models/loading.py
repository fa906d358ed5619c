"""From a model's name to the model, its tokenizer and its special tokens."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32 (or as asked) with what is needed to feed it."""

    model: PreTrainedModel
    tokenizer: ByteTokenizer
    name: str

    @property
    def mask_id(self) -> int:
        return self.model.config.mask_token_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id


def load_model(name: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """``tiny`` (shipped, no network) or a local folder that this library saved.

    Raises:
        UserError: no such folder, no config.json, another family, a missing weight or an unexpected one.
    """
    folder = Path(str(files("stabledllm") / "assets" / "tiny")) if name == "tiny" else Path(name).expanduser()
    _check_folder(folder, name)
    model, info = TinyMDM.from_pretrained(
        folder,
        config=TinyMDMConfig.from_pretrained(folder),
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            first = sorted(str(k) for k in info[kind])[0]
            raise UserError(f"model '{name}': expected the weights of its config, found {kind[:-5]} weight {first}.")
    return LoadedModel(model, ByteTokenizer(), name)


def _check_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise UserError(f"model '{name}': expected 'tiny' or a local folder, found neither.")
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model '{name}': expected {config}, found no such file.")
    family = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if family != TinyMDMConfig.model_type:
        raise UserError(f"model '{name}': expected model_type {TinyMDMConfig.model_type}, found {family!r}.")


@contextmanager
def evaluating(model):
    """Evaluation mode within, the former mode after."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
