"""The examples in docstrings of the core run and print what they say; those packages that must have them lack none."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

CORE = ("loss", "noise", "stats", "forward", "ppots", "variance", "gradient", "likelihood", "lab.measure", "lab.own")
WITH_EXAMPLES = ("forward", "gradient", "likelihood", "loss", "noise", "stats", "ppots", "variance")
"""Modules and packages of which every public function and class has an example."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> Iterator[ModuleType]:
    for name in CORE:
        top = importlib.import_module(f"stabledllm.{name}")
        yield top
        for inner in pkgutil.walk_packages(getattr(top, "__path__", ()), top.__name__ + "."):
            yield importlib.import_module(inner.name)


EXAMPLES = {test.name: test for module in modules() for test in doctest.DocTestFinder().find(module) if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str) -> None:
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(EXAMPLES[name], out=printed.append)
    assert not printed, "".join(printed)


def public_names(package: str) -> Iterator[str]:
    """Full names of the public functions and classes; an abstract class, which nobody makes, needs none."""
    for module in modules():
        if f"{module.__name__}.".startswith(f"stabledllm.{package}."):
            for name, value in vars(module).items():
                own = callable(value) and getattr(value, "__module__", None) == module.__name__
                abstract = inspect.isabstract(value) or getattr(value, "_is_protocol", False)
                if own and not name.startswith("_") and not abstract:
                    yield f"{module.__name__}.{name}"


@pytest.mark.parametrize("name", [name for package in WITH_EXAMPLES for name in public_names(package)])
def test_has_an_example(name: str) -> None:
    assert any(f"{example}.".startswith(f"{name}.") for example in EXAMPLES)
