"""The options that act on the process and not on a command: ``--quiet`` and ``--device``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stabledllm.cli.printing import be_quiet
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.device import ask_for

_WITH_MODEL = ("train", "experiment", "fit", "decompose", "recommend", "eval", "generate", "quickstart",
               "quickstart-images", "quickstart-rl", "encode", "replay")  # fmt: skip


@dataclass(frozen=True)
class Common:
    """An option of many commands: how it is shown, its help, what it does, and who takes it (empty: all)."""

    shown: str
    help: str
    act: Callable[..., None]
    takes_value: bool = False
    commands: tuple[str, ...] = ()


OPTIONS = {
    "--device": Common(
        "--device NAME",
        "cpu, cuda, cuda:N (the N-th GPU, from 0), mps; auto, as without it: training and eval take an accelerator "
        "where there is one, the others the CPU.",
        ask_for,
        takes_value=True,
        commands=_WITH_MODEL,
    ),
    "--quiet": Common("--quiet", "Print only the result and errors, without notes and bars.", be_quiet),
}
"""Every such option by its name."""


def apply_common(command: str, words: list[str]) -> list[str]:
    """Let the options of every command that are among the words act, and return the other words.

    Raises:
        UserError: one without its value, or with one that cannot be.
    """
    left: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*left, word, *words]
        name, equals, value = word.partition("=")
        option = OPTIONS.get(name)
        if option is None or (option.commands and command not in option.commands):
            left.append(word)
        elif option.takes_value:
            if not equals and (not words or words[0].startswith("-")):
                found = f"'{plain_text(words[0])}'" if words else "none"
                raise UserError(f"option '{name}': expected a value, found {found}; write {option.shown}.")
            option.act(value if equals else words.pop(0))
        elif equals:
            raise UserError(f"option '{name}': expected no value, found '{plain_text(value)}'.")
        else:
            option.act()
    return left
