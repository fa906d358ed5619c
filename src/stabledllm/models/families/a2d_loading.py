"""Loading of converted models, ours and dllm's, whose config.json may leave the mask token to the tokenizer's files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from stabledllm.errors import UserError
from stabledllm.models.families.a2d import A2D_MODELS, A2DModel
from stabledllm.models.families.native import load_native
from stabledllm.models.families.source import Source
from stabledllm.models.families.weights import weight_files
from stabledllm.runtime.files import read_json

_MASKS = ("<|mask|>", "<|MASK|>")
"""How dllm's converted checkpoints, and others in their layout, spell the mask token."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def is_a2d(source: Source) -> bool:
    """Whether config.json says that a checkpoint is a converted model."""
    return source.model_type in A2D_MODELS


def load_a2d(source: Source) -> A2DModel:
    """Load a converted model, or make a new one of its shape.

    Raises:
        UserError: a value of the config that is impossible or not implemented, weights that are not those of the
            config, or an output layer that the config ties to the embedding and the files do not.
    """
    kind = A2D_MODELS[source.model_type]
    if source.held is not None and source.config.get("tie_word_embeddings") and _HEAD in source.held.shapes:
        _check_tied(source)
    model = load_native(kind, source)
    if model.config.mask_token_id is None:
        model.config.mask_token_id = mask_token_in(source.folder)
    return model


def mask_token_in(folder: Path, usual: tuple[str, ...] = _MASKS) -> int | None:
    """The id of the mask token that the tokenizer's files name, or have under a usual name; None without one."""
    ids = _added_tokens(folder)
    files = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    named = [_name(_read(file).get("mask_token")) for file in files]
    return next((ids[name] for name in (*named, *usual) if name in ids), None)


def _added_tokens(folder: Path) -> dict[str, int]:
    """The ids of the tokens that were added to the vocabulary, by their names, wherever the files list them."""
    listed = {token["content"]: token["id"] for token in _read(folder / "tokenizer.json").get("added_tokens") or ()}
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    listed |= {token["content"]: int(number) for number, token in decoder.items()}
    return listed | _read(folder / "added_tokens.json")


def _name(token: str | dict | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _read(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _check_tied(source: Source) -> None:
    """dllm stores an output layer that the config ties to the embedding: the two must be one matrix."""
    if source.held.pickled:
        return
    found = {}
    for file in weight_files(source.folder, source.what):
        with safe_open(file, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in (_HEAD, _EMBEDDING) if key in opened.keys()}  # noqa: SIM118
    if _EMBEDDING in found and not torch.equal(found[_HEAD], found[_EMBEDDING]):
        raise UserError(
            f"{source.what}: expected {_HEAD} to be the embedding, as tie_word_embeddings in config.json says, found "
            f"another matrix."
        )
