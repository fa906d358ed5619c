"""Identities of evaluations: what decides their results, so that one is never taken for another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stabledllm.models.adapter_base import base_of
from stabledllm.models.loading import is_adapter, model_folder
from stabledllm.runtime.sameness import differences
from stabledllm.runtime.secrets import hidden

# Weights, config and tokenizer: what a checkpoint computes; not its optimizer, its log or a README beside it.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.index.json")
_DECIDING = (
    *_WEIGHTS, "config.json", "adapter_config.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.jinja", "chat_template.json", "stabledllm_tokenizer.json",
)  # fmt: skip
_LEFT_OUT = {"mask_token_id": None, "objective": "elbo", "likelihood": None}
_LEFT_OUT |= {
    f"{group}.{name}": False
    for group in ("decoding", "rollout")
    for name in ("logits_eos_inf", "confidence_eos_eot_inf")
}
"""Keys that an identity leaves out at these values, as evaluations older than they do."""
_WHOLE, _PIECE, _PIECES = 32 << 20, 1 << 16, 256


def fingerprint(name: str, base: str | None = None, *, code: bool = False, weights: bool = True) -> str:
    """A digest of a model's files, with those of an adapter's base; it does not depend on where they lie.

    Args:
        code: count the code that lies beside the weights as well, for models that are loaded with it.
        weights: False for a model whose weights are not read, since it gets new ones.

    A file above 32 MiB counts by its size and 256 pieces of 64 KiB, spread evenly: training moves every weight, so that
    two checkpoints differ in any piece, and an 8B model is read in less than a minute.

    Raises:
        UserError: no such model.
    """
    digest = hashlib.sha256()
    folder = model_folder(name)
    patterns = [*_DECIDING, *(["*.py"] if code else [])]
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    if not weights:
        files -= {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    for path in sorted(files):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        _feed(digest, path)
    if is_adapter(name):
        below = base or base_of(folder)
        digest.update(fingerprint(below, code=code).encode() if below else b"")
    return digest.hexdigest()[:32]


def digest_of(value: Any) -> str:
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def refuse_other(where: Path, saved: dict, wanted: dict) -> str | None:
    """Raise unless two identities agree; equal ``weights`` agree whatever the name of the ``model``.

    Returns:
        a sentence on keys that an older evaluation did not record and that were not compared, or None.

    Raises:
        UserError: names the first key that differs.
    """
    # Both as they come back from a file, where a tuple is a list and what looks like a secret is hidden.
    compared = differences(hidden(saved), hidden(json.loads(json.dumps(wanted))), {"model": "weights"}, _LEFT_OUT)
    compared.refuse(where, "the evaluation that is there,", "write this one to another folder")
    return compared.told(where)


def _feed(digest, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for piece in range(_PIECES):
            file.seek((size - _PIECE) * piece // (_PIECES - 1))
            digest.update(file.read(_PIECE))
