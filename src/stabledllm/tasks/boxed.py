r"""Finding the content of ``\boxed{...}``, whatever braces it holds."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?boxed\s*\{")


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` that is closed and not empty; None where there is none.

    ``\{`` and ``\}`` are characters, not braces. Time is linear in the text's length.
    """
    starts = {match.end() for match in _BOX.finditer(text)}
    content, open_braces, at = None, [], 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}", "\\"):
            at += 1
        elif text[at] == "{":
            open_braces.append(at + 1)
        elif text[at] == "}" and open_braces:
            start = open_braces.pop()
            # The inner of two nested boxes closes first; the outer one is the answer.
            if start in starts and text[start:at].strip():
                content = text[start:at]
        at += 1
    return content and content.strip()
