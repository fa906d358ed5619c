"""What the shell may complete: recipes, keys, and the values of choices, switches, methods, models and tasks.

Typer writes the shells' scripts (``stabledllm --install-completion``) and asks here. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stabledllm.cli.grammar import Grammar
from stabledllm.runtime.device import NAMES

if TYPE_CHECKING:
    from stabledllm.config.key_table import Key

_METHODS = ("method", "methods", "baselines")
_DATA = ("data.train", "data.validation", "data.test")


@dataclass(frozen=True)
class Offered:
    """One completion, with the attributes that typer's shells read."""

    value: str
    help: str = ""
    type: str = "plain"


def complete_setting(grammar: Grammar, words: Sequence[str], incomplete: str) -> list[Offered]:
    """The completions of a word: ``--KEY``, ``KEY=``, or a value after either.

    Args:
        words: those before it. bash breaks words at ``=``, so that ``method=pp`` arrives as three.
    """
    words = [*words, "="] if _is_at_equals() else list(words)
    if words[-1:] == ["--device"]:
        return [Offered(name) for name in NAMES if name.startswith(incomplete)]
    if (key := _awaiting(grammar, words)) is not None:
        return _values(key, incomplete, "")
    name, equals, begun = incomplete.partition("=")
    if equals and (key := _key(grammar, name)):
        return _values(key, begun, f"{name}=")
    return _options(grammar, incomplete) if incomplete.startswith("-") else _keys(grammar, incomplete)


def recipes() -> list[str]:
    """The names of the shipped recipes."""
    from stabledllm.config.recipe import shipped_recipes

    return list(shipped_recipes())


def named_values(key: Key) -> Iterator[str]:
    """The values that a key may have, as far as they have names; for methods, every part."""
    yield from key.choices
    name = key.name.rpartition(".")[2]
    if name in _METHODS:
        from stabledllm.noise.parts import PARTS, STANDARD

        yield from dict.fromkeys((STANDARD, *PARTS))
    if name == "model":
        from stabledllm.models.shapes import PUBLISHED

        yield from ("tiny", "tiny-mmada", *PUBLISHED)
    if key.name.removeprefix("base.") in _DATA:
        from stabledllm.tasks.registry import TASKS

        yield from TASKS


def _options(grammar: Grammar, incomplete: str) -> list[Offered]:
    """The options of settings that begin as typed, with dashes or underscores."""
    long = [key.name for key in grammar.keys.values() if not key.is_group]
    begun = incomplete[2:].replace("-", "_")
    return [
        Offered(f"--{name}", grammar.keys[grammar.short_for(name) or name].meaning)
        for name in dict.fromkeys((*grammar.shorts, *long))
        if name.startswith(begun)
    ]


def _keys(grammar: Grammar, incomplete: str) -> list[Offered]:
    """The keys that begin as typed; of a single one its values too, so that no shell ends the word at ``KEY=``."""
    found = [key for key in grammar.keys.values() if key.name.startswith(incomplete) and not key.is_group]
    if len(found) != 1:
        return [Offered(f"{key.name}=", key.meaning) for key in found]
    (key,) = found
    values = list(named_values(key))
    return [Offered(f"{key.name}={value}", key.meaning) for value in (values if len(values) > 1 else ["", key.takes])]


def _is_at_equals() -> bool:
    """Whether bash asks for what follows ``KEY=``, which click passes on as an empty word."""
    words, place = os.environ.get("COMP_WORDS", "").split(), os.environ.get("COMP_CWORD", "")
    return place.isdecimal() and words[int(place) : int(place) + 1] == ["="]


def _awaiting(grammar: Grammar, words: list[str]) -> Key | None:
    """The key whose value comes next: after ``--KEY``, and after ``KEY`` and ``=``."""
    if words[-1:] == ["="]:
        return _key(grammar, words[-2]) if len(words) > 1 else None
    joined = os.environ.get("_TYPER_COMPLETE_ARGS", "").rpartition(" ")[2]
    if joined.startswith("--") and "=" in joined:  # zsh and fish: click cuts the option off and drops it
        return _key(grammar, joined.partition("=")[0])
    if words and words[-1].startswith("--") and "=" not in words[-1]:
        key = _key(grammar, words[-1])
        return None if key is None or key.is_switch else key
    return None


def _key(grammar: Grammar, name: str) -> Key | None:
    bare = name.lstrip("-").replace("-", "_")
    short = grammar.short_for(bare)
    if short and (bare not in grammar.keys or grammar.keys[bare].is_group):
        return grammar.keys[short]
    return grammar.key(bare)


def _values(key: Key, begun: str, before: str) -> list[Offered]:
    """The values that begin as typed; of a list or a method of parts, what may come next."""
    done = max(begun.rfind(mark) for mark in "+,[") + 1
    kept, last = begun[:done], begun[done:]
    joined = kept[-1:] == "+"  # neither a part that is there already, nor a method that stands alone
    left_out = {"standard", "autoregressive", *kept.rpartition(",")[2].strip("[").split("+")} if joined else set()
    return [
        Offered(f"{before}{kept}{value}")
        for value in named_values(key)
        if value.startswith(last) and value not in left_out
    ]
