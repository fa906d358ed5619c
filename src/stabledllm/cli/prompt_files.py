"""Reads the prompts of ``generate``: typed, from standard input, or from a file; a file's name is no prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.nearby import nearby

if TYPE_CHECKING:
    from stabledllm.config.settings import DataSettings
    from stabledllm.data.prompts import Prompt


def check_typed(typed: Sequence[str], file: str | None) -> None:
    """Refuse prompts that can be told to be none before a file of them is read.

    Raises:
        UserError: no prompts, both kinds, one that is empty or not UTF-8, or the folder of a model.
    """
    from stabledllm.config.run_folder import is_model_folder
    from stabledllm.experiment.commands_at_once import check_prompts

    if file is None:
        check_prompts(typed)
        if folder := next(filter(is_model_folder, typed), None):
            shown = plain_text(folder)
            raise UserError(
                f"generate: prompt '{shown}': expected a prompt, found the folder of a model; write --model {shown}, "
                f"or pipe the words into 'generate -' to complete them."
            )
    elif typed:
        raise UserError(f"generate: expected prompts or --file {file}, found both.")
    elif file != "-" and not _is_file(file):
        path = Path(file).expanduser()
        found = "a folder" if path.is_dir() else f"nothing{nearby(path)}"
        raise UserError(f"{file}: expected a file of prompts, found {found}.")


def read_prompts(typed: list[str], file: str | None, settings: DataSettings) -> list[Prompt]:
    """The prompts that a command line asks for, in its order.

    Where a prompt is the name of a file, a person at a terminal is asked which of the two is meant.

    Args:
        typed: prompts as they are, or ``-`` alone for the lines of standard input. file: a file of prompts.

    Raises:
        UserError: a prompt that is the name of a file where nobody can be asked, or anything wrong with the file.
    """
    from stabledllm.data.prompts import STDIN, prompts_in, typed_prompt
    from stabledllm.tasks.text_files import lines

    if file is not None:
        return prompts_in(file, settings)
    if typed == [STDIN]:
        typed = [line for _, _, line in lines(sys.stdin.buffer, "standard input")]
        if not typed:
            raise UserError("standard input: expected at least one prompt, found none.")
        return [typed_prompt(text, number) for number, text in enumerate(typed, 1)]
    return list(_meant(typed, settings))


def _meant(typed: list[str], settings: DataSettings) -> Iterator[Prompt]:
    from stabledllm.data.prompts import prompts_in, typed_prompt

    for number, text in enumerate(typed, 1):
        if _is_file(text) and _is_file_meant(text):
            yield from prompts_in(text, settings)
        else:
            yield typed_prompt(text, number)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a null byte, the home of nobody
        return False


def _is_file_meant(name: str) -> bool:
    shown = plain_text(name)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            f"generate: prompt '{shown}': expected a prompt, found the name of a file; write --file {shown} to read "
            f"prompts from it, or pipe the words into 'generate -' to complete them."
        )
    try:
        return typer.confirm(f"'{shown}' is a file. Read the prompts from it?", default=True, err=True)
    except typer.Abort:  # Ctrl-C or the end of the input, which end every command alike
        raise KeyboardInterrupt from None
