"""The checks of what ``convert``, ``merge`` and ``rescore`` are given, as far as names and files tell; no framework."""

from __future__ import annotations

from pathlib import Path

from stabledllm.config.run_folder import model_in
from stabledllm.errors import UserError
from stabledllm.models.adapter_base import ADAPTER_CONFIG
from stabledllm.models.conversion.kinds import check_convertible
from stabledllm.models.names import check_model_name, is_adapter
from stabledllm.models.shipped import shipped_folder
from stabledllm.runtime.files import read_json
from stabledllm.runtime.nearby import nearby


def check_adapter(name: str) -> None:
    """Refuse a name under which no adapter is.

    Raises:
        UserError: says what is there.
    """
    if is_adapter(model_in(name)):
        return
    check_model_name(name)
    raise UserError(f"merge: expected a folder with {ADAPTER_CONFIG}, as a LoRA run's, found the model '{name}'.")


def check_convertible_model(name: str) -> None:
    """Refuse a model that cannot be converted, as far as its name and its ``config.json`` here tell.

    Raises:
        UserError: an adapter, or another architecture than those that can be converted.
    """
    check_model_name(name)
    folder = shipped_folder(name) or Path(model_in(name)).expanduser()
    if is_adapter(str(folder)):
        raise UserError(
            f"model '{name}': expected a whole model, found an adapter; 'stabledllm merge {name} --out FOLDER' makes "
            f"one of it."
        )
    if folder.is_dir():
        check_convertible(read_json(Path(folder) / "config.json"), f"model '{name}'")


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that is not there.

    Raises:
        UserError: names it, and the nearest.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found nothing{nearby(path, ['.gguf', '.GGUF'])}.")


def check_rows(path: Path) -> None:
    """Refuse a file of rows that is not there.

    Raises:
        UserError: names it, and the nearest.
    """
    if not path.is_file():
        found, near = ("a folder", "") if path.is_dir() else ("nothing", nearby(path))
        raise UserError(f"{path}: expected a file of rows, found {found}{near}.")


def check_file(path: Path) -> None:
    """Refuse a folder in the place of a file that is to be written.

    Raises:
        UserError: names it.
    """
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write, found a folder.")
