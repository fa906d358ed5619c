"""Refuses lists that name one method or seed twice: its run would be made once and counted twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from pydantic_core import PydanticCustomError

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
