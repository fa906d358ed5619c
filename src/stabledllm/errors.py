"""The one exception that the command line shows as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stabledllm.plain_text import plain_text


class UserError(ValueError):
    """Bad input, told in one sentence: which file, row or key, what was expected, what was found.

    What it quotes is made fit for a terminal here, whoever wrote it.
    """

    def __init__(self, sentence: object = ""):
        super().__init__(plain_text(sentence, longest=None))


def did_you_mean(name: str, known: Iterable[str], *, most: int | None = None) -> str:
    """`` (did you mean 'x'?)`` for the nearest known name, or the list of known names if there are at most ``most``."""
    known = list(known)
    near = difflib.get_close_matches(name[:200], known, n=1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(known)})" if most is None or len(known) <= most else ""
