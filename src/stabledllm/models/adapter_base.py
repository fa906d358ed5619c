"""The base model that an adapter's folder names, and the class it is loaded with; loads no framework."""

from __future__ import annotations

from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json

ADAPTER_CONFIG = "adapter_config.json"
INTERFACES = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
"""transformers' interfaces that a language model with code of its own may name, the most telling first."""


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


def class_for_peft(base: object) -> dict[str, str] | None:
    """The class, in peft's terms, with which ``AutoPeftModel`` loads this base without this library.

    That is transformers' own class, or the interface behind which the base has code of its own. None for a base that
    this library alone knows: peft imports no class from here.
    """
    kind = type(base)
    if kind.__module__.partition(".")[0] == "transformers":
        return {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    own = getattr(getattr(base, "config", None), "auto_map", None) or {}
    interface = next((name for name in INTERFACES if name in own), None)
    return {"base_model_class": interface, "parent_library": "transformers"} if interface else None


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()
