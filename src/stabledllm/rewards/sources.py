"""What tells a function that is given in Python from another: its source, and the plain values that it is bound to."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def bare(function: Any) -> Any:
    """The function behind partial arguments, or the method that an object is called by."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def digest_of(function: Callable) -> str:
    """A digest of the source, and of the values of partial arguments, of an object's attributes and of a closure.

    It is the same in every process, so that a run can be resumed: of values that are not plain, the kind alone counts.
    Of what was typed at a prompt, where no source is kept, the compiled form stands for it.
    """
    inner = bare(function)
    try:
        source = inspect.getsource(inner)
    except (OSError, TypeError):
        code = getattr(inner, "__code__", None)
        source = repr((code.co_code, code.co_names)) if code else getattr(inner, "__name__", "")
    return hashlib.sha256(f"{source}{_told(_bound(function, inner))}".encode()).hexdigest()


def _bound(function: Any, inner: Any) -> list:
    """Partial arguments, what a closure holds, and the attributes of the object that is called or has the method."""
    bound: list = []
    while isinstance(function, partial):
        bound += [list(function.args), function.keywords]
        function = function.func
    cells = [_content(cell) for cell in getattr(inner, "__closure__", None) or ()]
    owner = getattr(function, "__self__", None if inspect.isroutine(function) else function)
    attributes = {} if inspect.ismodule(owner) else getattr(owner, "__dict__", {})
    return [*bound, cells, dict(attributes)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _told(value: Any) -> str:
    """A plain value, or a collection of such, in words that no process changes."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_told(key)}: {_told(each)}" for key, each in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_told, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    return getattr(value, "__qualname__", type(value).__qualname__)
