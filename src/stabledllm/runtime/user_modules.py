"""Importing modules of the user's own, and telling of their errors in one line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def folder_first(folder: str) -> Iterator[None]:
    """A folder comes first while a module in it is imported, as for a script, and last afterwards.

    So a module of that name elsewhere does not take its place, and a folder there called as a library hides none later.
    """
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def module_in(path: Path, name: str) -> ModuleType:
    """The module that a file holds, imported under a name of its own; what it imports is looked for beside it first.

    Raises:
        Exception: whatever the module raises.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        with folder_first(str(path.parent)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def one_line(error: BaseException) -> str:
    """An error's kind and its message, on one line of at most 300 characters, without the last full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".:")
