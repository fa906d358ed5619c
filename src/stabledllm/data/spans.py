"""Finding the tokens of a text that are answer delimiters (ISAD) or syntax (SyRM), by matching the tokenised text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from stabledllm.errors import UserError, did_you_mean

SYNTAX = {
    "html": r"</?[a-zA-Z][^<>]*>",
    "markdown": r"\||:?-{3,}:?|^#+|\*\*",
    "code": (
        r"\b(?:and|as|assert|break|class|continue|def|elif|else|except|finally|for|from|if|import|in|is|lambda|"
        r"not|or|pass|raise|return|try|while|with|yield)\b|[-+*/%=<>!&|^~?:;,.(){}\[\]]"
    ),
}
"""Named sets of syntax tokens."""


def mark_matches(pieces: Sequence[str], pattern: re.Pattern) -> list[bool]:
    """For each token's text piece, whether it overlaps a match of the pattern in the joined text."""
    starts = list(accumulate(map(len, pieces), initial=0))
    marks = [False] * len(pieces)
    for match in pattern.finditer("".join(pieces)):
        piece = bisect_right(starts, match.start()) - 1
        while piece < len(pieces) and starts[piece] < match.end() > match.start():
            marks[piece] = bool(pieces[piece])
            piece += 1
    return marks


def delimiter_pattern(delimiters: Sequence[str]) -> re.Pattern:
    """A pattern that matches any of the given strings literally, the longest where several start at one place.

    Raises:
        UserError: an empty string, which would match everywhere and hide the others.
    """
    if "" in delimiters:
        raise UserError("data.delimiters: expected non-empty strings, found an empty one.")
    return re.compile("|".join(re.escape(d) for d in sorted(delimiters, key=len, reverse=True)))


def syntax_pattern(name: str) -> re.Pattern:
    """The pattern of a named set of :data:`SYNTAX`."""
    if name not in SYNTAX:
        raise UserError(f"data.syntax: unknown set '{name}'{did_you_mean(name, SYNTAX)}.")
    return re.compile(SYNTAX[name], re.MULTILINE)
