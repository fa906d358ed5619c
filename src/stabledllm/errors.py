"""The exceptions that the command line shows as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stabledllm.plain_text import plain_text


class UserError(ValueError):
    """Bad input, in one sentence: which file, row or key, what was expected, and what was found.

    Control characters in the sentence, which may quote foreign text, are spelt out, so that a terminal can show it.
    """

    def __init__(self, sentence: object = ""):
        super().__init__(plain_text(sentence, longest=None))


class Mistakes(UserError):
    """Everything that is wrong with an input, told at once.

    Args:
        sentences: one for each mistake. A single one reads like any other :class:`UserError`, several as a list.
    """

    def __init__(self, sentences: Iterable[str]):
        self.sentences = list(dict.fromkeys(plain_text(sentence, longest=None) for sentence in sentences))
        listed = "".join(f"\n  {number}. {sentence}" for number, sentence in enumerate(self.sentences, 1))
        several = f"{len(self.sentences)} mistakes; nothing was loaded or written:{listed}"
        ValueError.__init__(self, self.sentences[0] if len(self.sentences) == 1 else several)


class Gathered:
    """Gathers the mistakes that several checks find, so that they are told at once.

    >>> gathered = Gathered()
    >>> with gathered.check():
    ...     raise UserError("key 'a': expected 1, found 2.")
    >>> gathered.sentences
    ["key 'a': expected 1, found 2."]
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """One more mistake."""
        self.sentences.append(sentence)

    @contextmanager
    def check(self) -> Iterator[None]:
        """A :class:`UserError` that is raised while this context is open is gathered, and ends the context alone."""
        try:
            yield
        except UserError as error:
            found = error.sentences if isinstance(error, Mistakes) else [str(error)]
            self.sentences += [sentence for sentence in found if sentence not in self.sentences]

    def refuse(self) -> None:
        """Raise :class:`Mistakes` if there are any."""
        if self.sentences:
            raise Mistakes(self.sentences)


_TELLING = 4
"""Fewest letters of a name that tell which longer one was meant."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is meant: in another case or number, begun so, written much alike, or beginning it."""
    alike = {one.lower(): one for one in reversed(list(known))}
    name = name[:200].lower()
    if other := next((one for one in (f"{name}s", name.removesuffix("s"), name) if one in alike), None):
        return alike[other]
    begun = [one for one in reversed(alike) if len(name) >= _TELLING and one.startswith(name)]
    near = begun or difflib.get_close_matches(name, alike, n=1, cutoff=cutoff)
    near = near or sorted((one for one in alike if len(one) >= _TELLING and name.startswith(one)), key=len)[-1:]
    return alike[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], *, most: int | None = None) -> str:
    """A hint such as `` (did you mean 'x'?)`` with the nearest known name, else the known names if at most ``most``."""
    known = list(known)
    if near := nearest(name, known):
        return f" (did you mean '{near}'?)"
    return f" (known: {', '.join(known)})" if known and (most is None or len(known) <= most) else ""


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
