"""The exceptions that the command line shows as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stabledllm.plain_text import plain_text


class UserError(ValueError):
    """Bad input, in one sentence: which file, row or key, what was expected, and what was found.

    Control characters in the sentence, which may quote foreign text, are spelt out, so that a terminal can show it.
    """

    def __init__(self, sentence: object = ""):
        super().__init__(plain_text(sentence, longest=None))


def did_you_mean(name: str, known: Iterable[str], *, most: int | None = None) -> str:
    """A hint such as `` (did you mean 'x'?)`` with the nearest known name, else the known names if at most ``most``."""
    known = list(known)
    near = difflib.get_close_matches(name[:200], known, n=1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(known)})" if most is None or len(known) <= most else ""


class NotFinite(UserError):
    """A loss, a probability or a score is NaN or infinite, so that no figure can be made of it."""


class Diverged(Exception):
    """A training run has ended because its numbers are no longer finite; exit code 3 on the command line.

    Args:
        what: what was not finite, with its verb. step: the optimizer step, counted from 1.
        message: the whole sentence, where more is known.
    """

    exit_code = 3

    def __init__(self, what: str, step: int, message: str = ""):
        super().__init__(message or f"diverged at step {step}: {what}")
        self.what, self.step = what, step
