"""What the shell may complete: recipes, keys, and the values of choices, switches and methods. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stabledllm.cli.grammar import Grammar
from stabledllm.config.key_table import Key

_METHODS = ("method", "methods", "baselines")


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
    words = list(words)
    if incomplete == "=":
        words, incomplete = [*words, "="], ""
    key = _awaiting(grammar, words)
    if key is not None:
        return _offer(values(key), incomplete, "")
    name, equals, begun = incomplete.partition("=")
    if equals and (key := _key(grammar, name)):
        return _offer(values(key), begun, f"{name}=")
    dashes = "--" if incomplete.startswith("-") else ""
    shown = [*(name for name in grammar.short), *(["data"] if grammar.short_for("data") else [])] if dashes else []
    after = "" if dashes else "="
    return [
        *(Offered(f"--{name}") for name in dict.fromkeys(shown) if f"--{name}".startswith(incomplete)),
        *(
            Offered(f"{dashes}{key.name}{after}", key.meaning)
            for key in grammar.keys.values()
            if f"{dashes}{key.name}".startswith(incomplete.replace("-", "_") if not dashes else incomplete)
            and not key.is_group
        ),
    ]


def recipes() -> list[str]:
    """The names of the shipped recipes."""
    from stabledllm.config.recipe import shipped_recipes

    return list(shipped_recipes())


def values(key: Key) -> Iterator[str]:
    """The values that a key may have, as far as they have names; for methods, every part."""
    yield from key.choices
    if key.name.rpartition(".")[2] in _METHODS:
        from stabledllm.noise.parts import PARTS

        yield "standard"
        yield from (name for name in PARTS if name != "standard")
    if key.name.rpartition(".")[2] == "model":
        from stabledllm.models.shapes import PUBLISHED

        yield from ("tiny", "tiny-mmada", *PUBLISHED)


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


def _offer(found: Iterable[str], begun: str, before: str) -> list[Offered]:
    """The values that begin as typed; of a list or a method of parts, the last one."""
    done = max(begun.rfind(mark) for mark in "+,[") + 1
    kept, last = begun[:done], begun[done:]
    return [Offered(f"{before}{kept}{value}") for value in found if value.startswith(last)]
