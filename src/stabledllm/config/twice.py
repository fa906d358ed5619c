"""Refuses what is given twice: a method or seed, whose run would count twice, and a key on the command line."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from pydantic_core import PydanticCustomError

from stabledllm.errors import UserError
from stabledllm.runtime.secrets import hidden

VIEWS = {"multisample": "multisample2", "partition": "partition3"}
"""Parts whose name leaves out their number of views, with the name that states it."""
T = TypeVar("T")


def refuse_equal_methods(methods: list[str]) -> list[str]:
    """The methods, if no two of them are the same one in two spellings (``a+b`` is ``b+a``).

    Raises:
        PydanticCustomError: naming the first two.
    """
    return _refuse_equal(methods, lambda name: frozenset(VIEWS.get(p.strip(), p.strip()) for p in name.split("+")))


def refuse_equal_seeds(seeds: list[int]) -> list[int]:
    """The seeds, if each is named once.

    Raises:
        PydanticCustomError: naming the first that does not.
    """
    return _refuse_equal(seeds, lambda seed: seed)


def refuse_equal_numbers(values: list[float]) -> list[float]:
    """The numbers, if each is named once.

    Raises:
        PydanticCustomError: naming the first that is not.
    """
    return _refuse_equal(values, lambda value: value)


class Once:
    """The keys that a command line has given so far, of which each may stand there once, as in a file."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def check(self, override: str) -> None:
        """Note an override.

        Raises:
            UserError: its key was given before, or a key below it, which it would undo.
        """
        key, equals, value = override.partition("=")
        if not equals:
            return
        if key in self._given:
            values = " and ".join(str(hidden(one, key)) for one in (self._given[key], value))
            raise UserError(f"override '{key}': expected each key once, found it twice ({values}); leave one out.")
        if below := next((one for one in self._given if one.startswith(f"{key}.")), None):
            raise UserError(f"override '{key}': expected it before '{below}', which it undoes, found it behind.")
        self._given[key] = value


def _refuse_equal(values: list[T], same: Callable[[T], Hashable]) -> list[T]:
    first: dict[Hashable, T] = {}
    for value in values:
        if (key := same(value)) in first:
            both = _both(first[key], value)
            raise PydanticCustomError("twice", "expected each one once, found {said}", {"said": both})
        first[key] = value
    return values


def _both(one: object, other: object) -> str:
    return f"{other!r} twice" if one == other else f"{one!r} and {other!r}, which are the same"
