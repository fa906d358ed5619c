"""Rules for sets whose own scorers (package version 0.1.25) take wrong answers for right."""

from __future__ import annotations

from fractions import Fraction
from itertools import takewhile

_NEAR = 1e-4
"""How far the set's own scorer lets a probability be from the item's."""


def same_word(given: str, answer: str) -> float:
    """1 for the item's word, else 0: the set compares bool('True') with bool('False'), so that all answers are right.

    >>> same_word("false.", "False"), same_word("True", "False")
    (1.0, 0.0)
    """
    return float(given.rstrip(".").lower() == answer.lower())


def same_probability(given: str, answer: str) -> float:
    """1 for the item's probability, else the share of its digits: the set takes every beginning of it, as 0, for right.

    >>> same_probability("53/64", "0.828125"), same_probability("0.8", "0.828125"), same_probability("0", "0.828125")
    (1.0, 0.375, 0.125)
    """
    own, expected = (Fraction(text.replace(",", "").strip()) for text in (given, answer))
    if abs(own - expected) <= _NEAR:
        return 1.0
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(f"{float(own):.10g}", answer, strict=False))
    return len(list(alike)) / len(answer)


CORRECTED = {"coin_flip": same_probability, "game_of_life_halting": same_word}
"""What an answer is worth that the set's own scorer gives 1."""
