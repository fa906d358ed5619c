"""The examples in docstrings of the core run and print what they say; the functions named here have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

CORE = ("loss", "noise", "stats", "forward", "ppots", "variance", "gradient")
WITH_EXAMPLE = (
    "forward.elbo.elbo",
    "loss.reduce_loss",
    "loss.row_losses",
    "loss.token_losses",
    "stats.estimate.Estimate",
    "stats.intervals.of_positive",
    "stats.intervals.of_ratio",
    "stats.intervals.of_sum",
    "stats.intervals.of_variance",
    "stats.jackknife.jackknife",
    "stats.pareto.pareto_k",
    "stats.shares.token_mean",
)
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


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_has_an_example(name: str) -> None:
    assert f"stabledllm.{name}" in EXAMPLES
