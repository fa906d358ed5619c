"""The base model that an adapter's folder names; loads no framework."""

from __future__ import annotations

from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json

ADAPTER_CONFIG = "adapter_config.json"


def base_of(folder: Path) -> str | None:
    """The model that an adapter's folder names; None where it names none.

    Raises:
        UserError: a file that is no adapter's config, or an adapter that names itself.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object, found {type(config).__name__}.")
    base = config.get("base_model_name_or_path")
    if base is None:
        return None
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path: expected a model's name, found {base!r}.")
    if _is_adapter(Path(base).expanduser()):
        raise UserError(
            f"{path}: base_model_name_or_path: expected a model, found the adapter '{base}'; merge that one first, or "
            f"name another base with --base."
        )
    return base


def named_base(folder: Path) -> str:
    """The same as :func:`base_of`, but a base must be named.

    Raises:
        UserError: also where no base is named.
    """
    base = base_of(folder)
    if not base:
        raise UserError(f"{folder / ADAPTER_CONFIG}: expected base_model_name_or_path, found none.")
    return base


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()
