"""The kinds of values that several groups of settings share."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from stabledllm.config.typed import as_name

MOST = 1_000_000
"""Of rows, steps, draws and the like where more could only be a slip of the pen."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library that draws accepts."""
Name = Annotated[str, Field(min_length=1), AfterValidator(as_name)]
"""Of a folder, a model, a method: text, but never none."""


def at_home(path: str) -> str:
    """A path, or KIND:PATH, with the user's home folder in the place of a leading ``~``."""
    kind, colon, where = path.partition(":")
    if where.startswith("~"):
        return kind + colon + os.path.expanduser(where)
    return os.path.expanduser(path)


PathText = Annotated[Name, AfterValidator(at_home)]
"""Text that is, or may be, the name of a file or folder."""
