"""The kinds of values that several groups of settings share."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from stabledllm.config.typed import as_name

MOST = 1_000_000
"""Largest number of rows, steps, draws and the like; a larger one can only be a slip of the pen."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every library that draws random numbers accepts."""
Name = Annotated[str, Field(min_length=1), AfterValidator(as_name)]
"""The name of a folder, a model or a method: text that is not empty."""


def at_home(path: str) -> str:
    """A path or KIND:PATH whose leading ``~`` is replaced by the user's home folder."""
    kind, colon, where = path.partition(":")
    if where.startswith("~"):
        return kind + colon + os.path.expanduser(where)
    return os.path.expanduser(path)


PathText = Annotated[Name, AfterValidator(at_home)]
"""Text that is, or may be, the name of a file or folder."""
