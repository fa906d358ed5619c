"""The one exception that the command line shows as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, told in one sentence: which file, row or key, what was expected, what was found."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known name, or the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})"


class NotFinite(UserError):
    """A loss, a probability or a score that is NaN or infinite: no figure is made of it."""


class Diverged(Exception):
    """A training run that ended because its numbers are no longer finite; exit code 3 on the command line.

    Args:
        what: what was not finite, with its verb. step: the optimizer step, counted from 1.
        message: the whole sentence, where more is known.
    """

    def __init__(self, what: str, step: int, message: str = ""):
        super().__init__(message or f"diverged at step {step}: {what}")
        self.what, self.step = what, step
