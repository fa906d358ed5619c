"""The user's own callbacks of the Trainer, named in a recipe or given to ``train``.

They see a run and may stop, save or evaluate it. What it draws does not depend on them: noise is a function of the
seed, the step and the row, so callbacks are no part of a run's identity, and may differ when it goes on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from transformers import TrainerCallback

from stabledllm.errors import UserError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_EXAMPLE = "such as my_callbacks.SaveSamples"
_SET_UP_ELSEWHERE = ("stabledllm", "transformers")
"""Packages whose callbacks a run sets up itself, by its other keys."""


def named_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """A new callback of each class that a recipe names; modules are found in the working directory too.

    Raises:
        UserError: a name that does not import, or is no class of callbacks of the user's own that is made without
            arguments, or is there twice.
    """
    return _distinct([_made(_imported(name), f"key 'callbacks': expected {{}}, found '{name}'") for name in names])


def given_callbacks(given: Sequence[TrainerCallback | type[TrainerCallback]]) -> list[TrainerCallback]:
    """The callbacks given to ``train``, objects or classes.

    Raises:
        UserError: one is no callback of the user's own, or is there twice.
    """
    return [_made(one, f"callbacks: expected {{}}, found {one!r}") for one in given]


def names_of(callbacks: Sequence[TrainerCallback]) -> list[str]:
    """The dotted names of the callbacks' classes, for the record of a run."""
    return [f"{type(one).__module__}.{type(one).__qualname__}" for one in callbacks]


def all_callbacks(names: Sequence[str], given: Sequence[Any]) -> list[TrainerCallback]:
    """Those that a recipe names, then those given to ``train``; raises UserError as for either."""
    return _distinct([*named_callbacks(names), *given_callbacks(given)])


def _imported(name: str) -> Any:
    if not _DOTTED.fullmatch(name):
        raise UserError(f"key 'callbacks': expected dotted names of classes, {_EXAMPLE}, found '{name}'.")
    module, _, attribute = name.rpartition(".")
    root = name.partition(".")[0]
    if root in _SET_UP_ELSEWHERE or root in sys.stdlib_module_names:
        raise UserError(f"key 'callbacks': expected a class of your own, {_EXAMPLE}, found '{name}'.")
    try:
        with _working_directory_first():
            found = import_module(module)
    except Exception as error:  # whatever the user's module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise UserError(
            f"key 'callbacks': expected '{name}' in a module of the working directory or an installed one, found that "
            f"'{module}' does not import ({reason})."
        ) from None
    if not hasattr(found, attribute):
        raise UserError(f"key 'callbacks': expected a class '{attribute}' in {found.__name__}, found none.")
    return getattr(found, attribute)


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """The working directory comes first while a callback's module is imported, as for a script, and last afterwards.

    So a module of that name elsewhere does not take its place, and a folder there called as a library hides none later.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _made(one: Any, refusal: str) -> TrainerCallback:
    kind = one if isinstance(one, type) else type(one)
    if not issubclass(kind, TrainerCallback):
        raise UserError(refusal.format("a transformers.TrainerCallback") + ".")
    if kind.__module__.partition(".")[0] in _SET_UP_ELSEWHERE:
        own = "a class of your own, since a run sets up those of the libraries by its other keys"
        raise UserError(refusal.format(own) + ".")
    if not isinstance(one, type):
        return one
    try:
        return one()
    except Exception as error:  # whatever the user's class raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise UserError(refusal.format("a class that is made without arguments") + f" ({reason}).") from None


def _distinct(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    names = names_of(callbacks)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"callbacks: expected each class once, found '{twice}' twice.")
    return callbacks
