r"""The normal form of short answers written in LaTeX, by which different spellings of an answer become one string.

``\dfrac{1}{2}``, ``\frac12`` and ``1/2`` agree; so do ``90^\circ`` and ``90°``, ``\text{ m/s}`` and ``m/s``,
``\left( x \right)`` and ``(x)``, ``3\times10^{5}`` and ``300000``.
Only numbers and simple fractions are evaluated.
"""

from __future__ import annotations

import re
import unicodedata

from stabledllm.tasks import numbers

_LONGEST = 2000
"""Number of characters of an answer that are normalised; no answer of a data set is longer."""
_FONT = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|mathsf|textbf|textit|textrm|textsf|mbox|hbox|operatorname|boldsymbol|bm|emph|ce"
    r"|boxed|fbox)\*?\s*\{"
)
_NOTHING = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|textstyle|limits|,|;|:|!|>|quad|qquad|\(|\)|\[|\])(?![a-zA-Z])"
    r"|\\ |~|\\?\$"
)
_DEGREE = re.compile(r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\degree|°|(?<=\d)\s*degrees?\b")
_SCRIPT = re.compile(r"([\^_])\{(\w)\}")
_NUMBER = re.compile(numbers.NUMBER)
_LEFT_SIDE = re.compile(r"^[^\W\d_](?:_\{?\w+\}?)?(?:\([^\W\d_]\))?(?:=|\\approx|≈)(?!.*=)")
_WORD = re.compile(r"[^\W\d_]{3,}")
_THOUSANDS = re.compile(r"[^\d,]*\d{1,3}(?:,\d{3})+(?!\d)[^,]*")
_POWER_OF_TEN = re.compile(r"(.+?)\*10\^\{?([-+]?\d{1,6})\}?")
_SAME = {"×": "*", "·": "*", "⋅": "*", "\u2212": "-", "–": "-", "∞": "\\infty ", "√": "\\sqrt "}
_GREEK = {chr(i): f" {unicodedata.name(chr(i)).split()[3].casefold()} " for i in range(0x3B1, 0x3CA) if i != 0x3C2}
# 1\frac{1}{2} is one and a half, not eleven halves: an invisible plus replaces the space.
_PLUS = "\u2064"
_MIXED = re.compile(r"(?<=\d)\s*(?=\\frac)|(?<=\d)\s+(?=\d)")
_COMMANDS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\leq": "<=", "\\le": "<=", "\\geq": ">=", "\\ge": ">="}


def normal(answer: str) -> str:
    """The normal form of an answer; the empty string if nothing is left of it. It never raises an error."""
    text = unicodedata.normalize("NFC", answer[:_LONGEST]).strip()
    for sign, plain in (_SAME | _GREEK).items():
        text = text.replace(sign, plain)
    text = _NOTHING.sub(lambda m: " " if m[0] in ("\\ ", "~") else "", text)
    text = re.sub(r"\\%|%", "", text)
    text = _without_groups(text, _FONT)
    text = _DEGREE.sub("", text)
    text = _MIXED.sub(_PLUS, re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = _fractions(text)
    text = re.sub(r"\\sqrt\s*(\w)(?!\w)", r"\\sqrt{\1}", text)
    for name, plain in _COMMANDS.items():
        text = re.sub(re.escape(name) + r"(?![a-zA-Z])", lambda _, plain=plain: plain, text)
    text = re.sub(r"\\([a-zA-Z]+)\s*", r"\1", text).replace("\\{", "(set").replace("\\}", "set)").replace("\\", "")
    text = _WORD.sub(lambda m: m[0].casefold(), text)
    text = re.sub(r"\s+", "", text)
    text = _SCRIPT.sub(r"\1\2", text)
    text = _LEFT_SIDE.sub("", text).rstrip(".,;")
    while text.startswith("{") and text.endswith("}") and _one_group(text):
        text = text[1:-1]
    return text


def equal(a: str, b: str) -> bool:
    """Whether two normal forms are the same answer: equal letter by letter, or numbers or fractions of equal value."""
    if a == b:
        return bool(a)
    x, y = number(a), number(b)
    return x is not None and y is not None and numbers.same(x, y)


def number(text: str) -> str | None:
    """A normal form as a number in the form of :mod:`~stabledllm.tasks.numbers`; None if it is no number."""
    power = _POWER_OF_TEN.fullmatch(text)
    if power:
        text = f"{power[1]}e{power[2]}"
    text = re.sub(r"\((-?\d+(?:\.\d+)?)\)", r"\1", text.replace(_PLUS, " ").replace("{,}", ""))
    if "," in text and not _THOUSANDS.fullmatch(text):
        return None  # 1,2 is a list, not twelve
    match = _NUMBER.fullmatch(text)
    return match and numbers.written(match)


def _fractions(text: str) -> str:
    r"""The text with ``\frac{a}{b}`` and ``\frac ab`` as ``a/b``; parts of more than one word get brackets."""
    # From the last to the first, so that inner fractions are replaced before outer ones.
    for at in reversed([m.end() for m in re.finditer(r"\\frac(?![a-zA-Z])", text)]):
        top, after = _argument(text, at)
        bottom, end = _argument(text, after)
        if top is not None and bottom is not None:
            text = f"{text[: at - 5]}{_bracketed(top)}/{_bracketed(bottom)}{text[end:]}"
    return text


def _argument(text: str, at: int) -> tuple[str | None, int]:
    while text[at : at + 1].isspace():
        at += 1
    if text[at : at + 1] == "{":
        end = _closing(text, at)
        return (None, at) if end is None else (text[at + 1 : end], end + 1)
    match = re.compile(r"\\[a-zA-Z]+|[^\s{}\\]").match(text, at)
    return (match[0], match.end()) if match else (None, at)


def _bracketed(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"[\w.]+|-\d+", text) else f"({text})"


def _without_groups(text: str, command: re.Pattern) -> str:
    r"""The text with each ``\text{...}`` replaced by its content, whatever braces that holds."""
    while match := command.search(text):
        end = _closing(text, match.end() - 1)
        inner = text[match.end() : end]
        text = text[: match.start()] + inner + ("" if end is None else text[end + 1 :])
    return text


def _one_group(text: str) -> bool:
    return _closing(text, 0) == len(text) - 1


def _closing(text: str, at: int) -> int | None:
    """The place at which the brace at ``at`` closes; None if it does not."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return None
