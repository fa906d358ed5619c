"""Turns what was typed after a command into settings: a recipe first, then ``KEY=VALUE``.

``--KEY VALUE`` has become ``KEY=VALUE`` by then, see :mod:`stabledllm.cli.dashes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stabledllm.cli.grammar import GRAMMARS, Grammar
from stabledllm.errors import Gathered, UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.secrets import hidden


@dataclass(frozen=True)
class Typed:
    """What was typed: the recipe, if one was named, and the settings as ``KEY=VALUE``, each key once."""

    command: str
    recipe: str | None
    overrides: list[str]

    @property
    def grammar(self) -> Grammar:
        """The table of the command's keys."""
        return GRAMMARS[self.command]

    def tree(self, say=None) -> dict:
        """The command's presets with the keys that it takes of the recipe; the overrides are not in it.

        Args:
            say: takes the line that tells which keys are taken of the recipe of a training run.

        Raises:
            UserError: no such recipe, or broken YAML.
        """
        from stabledllm.config.borrowed import borrowed
        from stabledllm.config.recipe import merge

        tree = self.grammar.tree()
        if self.recipe is None:
            return tree
        taken, note = borrowed(self.recipe, self.grammar.kind, self.grammar.borrows or ())
        if note and say is not None:
            say(note)
        return merge(tree, taken)


def read_arguments(
    command: str, words: Sequence[str] | None, config: str | None = None, more: Sequence[str] | None = None
) -> Typed:
    """The recipe and the settings among the words that were typed.

    Args:
        config: the recipe of ``--config``. more: settings of the option ``--set``, before those in ``words``.

    Raises:
        Mistakes: two recipes, or a key that is given two values.
    """
    recipes, overrides = [config] if config else [], []
    for word in words or []:
        if is_setting(word) or recipes[-1:] not in ([], [config]):
            overrides.append(word)
        elif word not in recipes:
            recipes.append(word)
    gathered = Gathered()
    if len(recipes) > 1:
        found = " and ".join(f"'{plain_text(recipe)}'" for recipe in recipes)
        gathered.add(f"{command}: expected one recipe, in the first place or after --config, found {found}.")
    overrides = _once([*(more or []), *overrides], GRAMMARS[command], gathered)
    gathered.refuse()
    return Typed(command, recipes[0] if recipes else None, overrides)


def is_setting(word: str) -> bool:
    """Whether a word is ``KEY=VALUE`` and not the name of a file."""
    return "=" in word and not Path(word).is_file()


def recipe_of(typed: Typed) -> str:
    """The recipe that was named.

    Raises:
        UserError: none was.
    """
    if typed.recipe is None:
        raise UserError(
            f"{typed.command}: expected a recipe in the first place, found none; 'stabledllm ls' lists the shipped "
            f"ones, and a YAML file of your own is one too."
        )
    return typed.recipe


def _once(overrides: Sequence[str], grammar: Grammar, gathered: Gathered) -> list[str]:
    """The settings under their keys' full names, each once; two values of one key are a mistake."""
    values: dict[str, str] = {}
    kept = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and (key not in grammar.keys or grammar.keys[key].is_group):
            short = grammar.short_for(key) if not value.startswith("{") and value != "null" else None
            key = short or key
        if key in values and values[key] != value:
            both = " and ".join(f"'{plain_text(hidden(one, key))}'" for one in (values[key], value))
            gathered.add(f"key '{plain_text(key)}': expected one value, found {both}.")
        elif key not in values:
            kept.append(f"{key}{equals}{value}")
        values[key] = value
    return kept
