"""Loading a study that is a script, with the modules beside it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def loaded(folder: Path) -> Iterator[ModuleType]:
    """Yields a folder's ``study.py`` as a module; afterwards nothing of it is left."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(folder))
    name = f"{folder.name}_study"
    spec = importlib.util.spec_from_file_location(name, folder / "study.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, found)  # dataclasses look their module up
    for beside in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, beside.stem, raising=False)  # another study's module may have that name
    spec.loader.exec_module(found)
    yield found
    for beside in folder.glob("*.py"):
        sys.modules.pop(beside.stem, None)
    monkeypatch.undo()
