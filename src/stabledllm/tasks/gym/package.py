"""The package reasoning-gym, imported only here and only when a specification needs it: it brings sympy."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from stabledllm.errors import UserError

NAME = "reasoning-gym"


def package(spec: str) -> ModuleType:
    """The package.

    Args:
        spec: what needs it, for the error.

    Raises:
        UserError: it is not installed, or a package that it needs is not.
    """
    try:
        with quiet():
            import reasoning_gym
            import reasoning_gym.factory
    except ImportError as error:
        missing = f" ({error})" if error.name != "reasoning_gym" else ""
        raise UserError(
            f"data '{spec}': expected the package '{NAME}' to make and score its rows, found none{missing}; pip "
            f"install 'stabledllm[reasoning-gym]'."
        ) from None
    return reasoning_gym


def registered(spec: str) -> dict[str, tuple[type, type]]:
    """The class of each set, and that of its configuration, by the set's name."""
    return package(spec).factory.DATASETS


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the lines and warnings that some sets print out of a command's own output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def made(cls: type, config: Any) -> Any:
    """A set of that class; what its configuration refuses is raised as it is."""
    with quiet():
        return cls(config)
