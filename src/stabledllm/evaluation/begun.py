"""A file of completions and the folder beside it that keeps what is decoded until all of it is; loads no framework."""

from __future__ import annotations

from pathlib import Path

from stabledllm.errors import UserError

_BEGUN = ".begun"


def begun_folder(out: Path) -> Path:
    """The folder that keeps what is decoded of a file until all of it is."""
    return out.with_name(out.name + _BEGUN)


def refuse_written(out: Path) -> None:
    """Refuse a file of completions that is there already and is not one that a killed command has begun.

    Raises:
        UserError: it is there, or is a folder.
    """
    if out.is_dir():
        raise UserError(f"{out}: expected a file to write, found a folder.")
    if out.exists() and not begun_folder(out).is_dir():
        raise UserError(f"{out}: expected a new file, found one that is there already; name another, or remove it.")
