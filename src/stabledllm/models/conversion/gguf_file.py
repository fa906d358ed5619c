"""GGUF files (llama.cpp's): what one holds, told from its header before any weight is read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error

_MAGIC = b"GGUF"
_KINDS = ("llama", "qwen2", "qwen3")


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def check_gguf(path: Path) -> None:
    """Check that a file holds a whole Llama, Qwen2 or Qwen3 model without experts, whatever its precision.

    Raises:
        UserError: no such file, another kind of file, an adapter, a part of a model or another architecture, or the
            package ``gguf`` is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a GGUF file, found no such file.")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{path}: expected a GGUF file, found one that does not begin with {_MAGIC.decode()}.")
    if find_spec("gguf") is None:
        raise UserError(
            f"{path}: expected the package gguf, which reads such files, found it not installed "
            f"(pip install 'stabledllm[gguf]')."
        )
    header = _header(path)
    kind = header.get("general.architecture")
    if header.get("general.type", "model") != "model":
        raise UserError(f"{path}: expected a GGUF file of a model, found one of type '{header['general.type']}'.")
    if kind not in _KINDS:
        raise UserError(f"{path}: expected a GGUF file of {', '.join(_KINDS)}, found architecture '{kind}'.")
    if header.get("split.count", 1) > 1:
        raise UserError(
            f"{path}: expected a whole model, found one of {header['split.count']} parts; llama-gguf-split --merge "
            f"joins them."
        )
    if header.get(f"{kind}.expert_count"):
        raise UserError(f"{path}: expected a model without experts, found {header[f'{kind}.expert_count']} experts.")
    if header.get(f"{kind}.attention.sliding_window"):
        raise UserError(f"{path}: expected full attention in every layer, found a sliding window.")


def _header(path: Path) -> dict[str, Any]:
    """The numbers and strings of the header; its lists, such as the vocabulary, are left out."""
    from gguf import GGUFReader, GGUFValueType

    with as_user_error(f"{path}: expected a GGUF file", "found a broken one"):
        fields = GGUFReader(path).fields
        return {
            name: field.contents()
            for name, field in fields.items()
            if field.types and field.types[0] != GGUFValueType.ARRAY
        }
