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
from stabledllm.models.quantised import keep_differentiable, quantisation
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

ADAPTER_CONFIG = "adapter_config.json"


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


def load_model(
    name: str, dtype: torch.dtype = torch.float32, *, base: str | None = None, quantised: str | None = None
) -> LoadedModel:
    """``tiny`` (shipped, no network), a local folder that this library saved, or the folder of an adapter.

    Args:
        base: of an adapter, in the place of the base that it names.
        quantised: ``4bit`` or ``8bit``: the weights of the linear layers, held so by bitsandbytes.

    Raises:
        UserError: no such folder, no config.json, another family, a missing weight or an unexpected one.
    """
    if is_adapter(name):
        from stabledllm.models.adapters import load_adapter

        return load_adapter(name, lambda found: load_model(found, dtype, quantised=quantised), base)
    if base is not None:
        raise UserError(f"model '{name}': expected an adapter's folder to take base '{base}', found none.")
    folder = Path(str(files("stabledllm") / "assets" / "tiny")) if name == "tiny" else Path(name).expanduser()
    _check_folder(folder, name)
    model, info = TinyMDM.from_pretrained(
        folder,
        config=TinyMDMConfig.from_pretrained(folder),
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        **quantisation(quantised, dtype),
    )
    keep_differentiable(model)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            first = sorted(str(k) for k in info[kind])[0]
            raise UserError(f"model '{name}': expected the weights of its config, found {kind[:-5]} weight {first}.")
    return LoadedModel(model, ByteTokenizer(), name)


def is_adapter(name: str) -> bool:
    """Whether a model's name is the folder of an adapter."""
    return (Path(name).expanduser() / ADAPTER_CONFIG).is_file()


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
