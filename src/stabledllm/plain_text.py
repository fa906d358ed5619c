"""Text of others made fit to be shown: no terminal obeys it, no line is broken by it, and no secret stands in it."""

from __future__ import annotations

import unicodedata

_LONGEST = 300
_HARMLESS = "\xad\u200c\u200d\u200e\u200f\u061c\u2060\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"
"""Of the invisible formatting: the soft hyphen, joiners, the marks with which Arabic, Hebrew and Syriac are written."""


def plain_text(text: object, *, longest: int | None = _LONGEST, keep: str = "") -> str:
    """The text in one line, its control characters spelled out (``\\x1b``), cut in the middle where it is too long.

    Control characters are all of Unicode's that act on a terminal or a page instead of being seen: escape sequences,
    those that turn the direction of writing, and lone surrogates, which no file can hold.

    Args:
        longest: characters that are shown at most; None for all of them.
        keep: control characters that stay, such as ``"\\n\\t"`` of a completion that is printed as it is.
    """
    text = str(text)
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 4 :]}"
    return "".join(c if c in keep or not _acts(c) else _spelled(c) for c in text)


def _acts(character: str) -> bool:
    # Cc: controls; Cf: invisible formatting; Cs: surrogates; Zl and Zp: line and paragraph separators.
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in _HARMLESS)


def _spelled(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
