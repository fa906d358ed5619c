"""Turns what was typed after a command into settings: a recipe first, then ``KEY=VALUE``.

``--KEY VALUE`` has become ``KEY=VALUE`` by then, see :mod:`stabledllm.cli.dashes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabledllm.cli.grammar import GRAMMARS, Grammar
from stabledllm.cli.printing import say
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

OWN_ROWS = "sft"
"""The recipe of one's own rows."""


@dataclass(frozen=True)
class Typed:
    """What was typed: the recipe, if one was named, and the settings as ``KEY=VALUE``."""

    command: str
    recipe: str | None
    overrides: list[str]

    @property
    def grammar(self) -> Grammar:
        """The table of the command's keys."""
        return GRAMMARS[self.command]

    def tree(self, tell: Callable[[str], None]) -> dict:
        """The command's presets with the keys that it takes of the recipe; the overrides are not in it.

        Args:
            tell: takes the line that says which keys are taken of the recipe of a training run.

        Raises:
            UserError: no such recipe, or broken YAML.
        """
        from stabledllm.config.borrowed import borrowed
        from stabledllm.config.recipe import merge
        from stabledllm.config.run_folder import is_of_run

        tree, taken = self.grammar.tree(), {}
        if self.recipe is not None:
            taken, note = borrowed(self.recipe, self.grammar.kind, self.grammar.borrows or ())
            if note:
                tell(note)
        if is_of_run(self._model or str(taken.get("model", ""))):
            tree.get("data", {}).pop("train", None)  # a run has rows of its own
        return merge(tree, taken)

    @property
    def _model(self) -> str | None:
        """The model that was typed last."""
        models = [one.partition("=")[2] for one in self.overrides if one.startswith("model=")]
        return models[-1] if models else None


def read_arguments(
    command: str, words: Sequence[str] | None, config: str | None = None, more: Sequence[str] | None = None
) -> Typed:
    """The recipe and the settings among the words that were typed.

    Args:
        config: the recipe of ``--config``. more: settings of the option ``--set``, before those in ``words``.

    Raises:
        UserError: two recipes.
    """
    _refuse_blanks(command, list(words or []))
    recipes, overrides = [config] if config else [], []
    for word in words or []:
        if is_setting(word) or recipes[-1:] not in ([], [config]):
            overrides.append(word)
        elif word not in recipes:
            recipes.append(word)
    if len(recipes) > 1:
        found = " and ".join(f"'{plain_text(recipe)}'" for recipe in recipes)
        raise UserError(f"{command}: expected one recipe, in the first place or after --config, found {found}.")
    full = [_in_full(override, GRAMMARS[command]) for override in (*(more or []), *overrides)]
    return Typed(command, recipes[0] if recipes else None, full)


def _refuse_blanks(command: str, words: list[str]) -> None:
    """Refuse ``KEY = VALUE`` and ``KEY= VALUE``, which a shell takes apart."""
    for number, word in enumerate(words[:-1]):
        key, value = (
            (words[number - 1], words[number + 1]) if word == "=" and number else (word[:-1], words[number + 1])
        )
        if (word == "=" and number) or (word[-1:] == "=" and "=" not in word[:-1] and word[:-1] and "=" not in value):
            raise UserError(
                f"{command}: expected KEY=VALUE without blanks, found '{plain_text(key)}', '=' and "
                f"'{plain_text(value)}' apart; write {plain_text(key)}={plain_text(value)}."
            )


def is_setting(word: str) -> bool:
    """Whether a word is ``KEY=VALUE`` and not the name of a file."""
    return "=" in word and not Path(word).is_file()


def recipe_of(typed: Typed, own_rows: bool = True) -> str:
    """The recipe that was named, or that of one's own rows where only settings were typed.

    Args:
        own_rows: whether the command may take that one.

    Raises:
        UserError: none was named, and nothing else was typed.
    """
    if typed.recipe is None and not (own_rows and typed.overrides):
        own = " Without one: model=MODEL data.train=FILE." if own_rows else ""
        raise UserError(
            f"{typed.command}: expected a recipe in the first place, found none; 'stabledllm ls' lists the shipped "
            f"ones, and a YAML file of your own is one too.{own}"
        )
    if typed.recipe is None:
        say(f"note: without a recipe, '{OWN_ROWS}' is taken: that of your own rows")
    return typed.recipe or OWN_ROWS


def _in_full(override: str, grammar: Grammar) -> str:
    """The setting under its key's full name, where it was typed under a short one."""
    key, equals, value = override.partition("=")
    is_value = equals and not value.startswith("{") and value != "null"
    if is_value and (key not in grammar.keys or grammar.keys[key].is_group):
        key = grammar.short_for(key) or key
    return f"{key}{equals}{value}"
