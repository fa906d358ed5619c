"""What decides the results of an evaluation, so that those of another one are never taken for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stabledllm.errors import UserError
from stabledllm.models.adapter_base import base_of
from stabledllm.models.loading import is_adapter, model_folder

# Weights, config and tokenizer: what a checkpoint computes; not its optimizer, its log or a README beside it.
_DECIDING = (
    "*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "config.json", "adapter_config.json",
    "*.index.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.jinja", "chat_template.json", "stabledllm_tokenizer.json",
)  # fmt: skip
_WHOLE, _PIECE, _PIECES = 32 << 20, 1 << 16, 256


def fingerprint(name: str, base: str | None = None) -> str:
    """A digest of a model's files, and of its base's for an adapter; the same wherever they lie.

    Files above 32 MiB count by their size and 256 pieces of 64 KiB spread over them: training moves every weight, so
    that two checkpoints differ in any piece, and an 8B model takes no minute to read.

    Raises:
        UserError: no such model.
    """
    digest = hashlib.sha256()
    folder = model_folder(name)
    for path in sorted({path for pattern in _DECIDING for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        _feed(digest, path)
    if is_adapter(name):
        below = base or base_of(folder)
        digest.update(fingerprint(below).encode() if below else b"")
    return digest.hexdigest()[:32]


def digest_of(value: Any) -> str:
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def refuse_other(where: Path, saved: dict, wanted: dict) -> None:
    """Raise unless two identities agree; the same ``weights`` are the same under another ``model``'s name.

    Raises:
        UserError: naming the first key that differs.
    """
    saved, wanted = _flat(saved), _flat(wanted)
    named = {"model"} if "weights" in wanted and saved.get("weights") == wanted["weights"] else set()
    for key in [key for key in wanted if key not in named] + sorted(saved.keys() - wanted.keys()):
        # As JSON has them: a tuple read back is a list.
        if json.dumps(saved.get(key)) != json.dumps(wanted.get(key)):
            raise UserError(
                f"{where}: expected the evaluation that is there, with {key}={saved.get(key)!r}, found "
                f"{key}={wanted.get(key)!r}; write this one to another folder."
            )


def _feed(digest, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for piece in range(_PIECES):
            file.seek((size - _PIECE) * piece // (_PIECES - 1))
            digest.update(file.read(_PIECE))


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
