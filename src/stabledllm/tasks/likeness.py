"""The plain form of a text, without case, spacing and punctuation, for comparing questions."""

from __future__ import annotations

import re
import unicodedata

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A sign before a digit is part of a number: 2.5 is not 25, 7-5 not 7 5. Symbols such as + and $ stay as well.
_PUNCTUATION = re.compile(r"(?![-./*:%^](?=\d))[^\w\s+<>=|$€£¥~√²³°]|_")


def plain(text: str) -> str:
    """The words, numbers and symbols of a text, in lower case, one space between them, without thousands commas."""
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text).casefold())
    return " ".join(_PUNCTUATION.sub(" ", text).split())
