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


class NotFinite(UserError):
    """A loss, a probability or a score that is NaN or infinite: no figure is made of it."""


class Diverged(Exception):
    """A training run that ended because its numbers are no longer finite; exit code 3 on the command line.

    Args:
        what: what was not finite, with its verb. step: the optimizer step, counted from 1.
        message: the whole sentence, where more is known.
    """

    exit_code = 3

    def __init__(self, what: str, step: int, message: str = ""):
        super().__init__(message or f"diverged at step {step}: {what}")
        self.what, self.step = what, step
