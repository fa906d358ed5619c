"""Makes foreign text safe to show: it can neither control a terminal nor break a line."""

from __future__ import annotations

import unicodedata

_LONGEST = 300
_HARMLESS = "\xad\u200c\u200d\u200e\u200f\u061c\u2060\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"
"""Invisible formatting that is harmless: the soft hyphen, joiners, and marks of Arabic, Hebrew and Syriac."""


def plain_text(text: object, *, longest: int | None = _LONGEST, keep: str = "") -> str:
    """The text in one line, with control characters spelled out (``\\x1b``), cut in the middle where it is too long.

    Control characters are all characters of Unicode that act on a terminal or a page instead of being seen: escape
    sequences, those that turn the direction of writing, and lone surrogates, which no file can hold.

    Args:
        longest: most characters to show; None for all of them.
        keep: control characters that stay, such as ``"\\n\\t"`` for a completion that is printed as it is.
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
