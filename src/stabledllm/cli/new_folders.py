"""New folders that appear with all their files or not at all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.folders import refuse_used, whole_folder
from stabledllm.runtime.locks import is_busy_beside, writing_beside


@contextmanager
def new_folder(out: Path, command: str) -> Iterator[tuple[Path, Path]]:
    """Yields the folder to write in, and ``out``, the name that it gets at the end.

    Raises:
        UserError: ``out`` has something in it, or cannot be replaced or written.
    """
    refuse_used(out)
    if os.path.ismount(out) or (out.exists() and out.samefile(os.curdir)):
        raise UserError(f"{out}: expected a folder that can be made anew, found a mount point or the current folder.")
    with writing_beside(out, command, folder=True):
        refuse_used(out)
        with whole_folder(out) as folder:
            yield folder, out


def free_folder(home: Path, command: str) -> AbstractContextManager[tuple[Path, Path]]:
    """The same as :func:`new_folder`, for the first of ``home``/1, 2, ... that does not exist and is not being made."""
    places = (home / str(number) for number in itertools.count(1))
    return new_folder(next(place for place in places if not place.exists() and not is_busy_beside(place)), command)
