"""Numbers whole and by value, against Python's own formatting of exact fractions."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.tasks import numbers


def read(text: str) -> Fraction | None:
    match = re.fullmatch(numbers.NUMBER, text)
    return match and numbers.value(numbers.written(match))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234), ("1234.0", 1234), ("1.234e3", 1234), ("1{,}234", 1234), ("1\\,234", 1234),
        ("1\u202f234", 1234), ("12,34,567", 1234567), ("$18", 18), ("\\$18", 18), ("-$18", -18), ("$-18", -18),
        ("\u221218", -18), ("+18", 18), (".5", Fraction(1, 2)), ("1/2", Fraction(1, 2)), ("-1/2", Fraction(-1, 2)),
        ("1 1/2", Fraction(3, 2)), ("0.1", Fraction(1, 10)), ("٣", 3), ("1/0", None), ("1e1001", None),
        ("9" * 1001, None), ("1e99999999999999999999", None),
    ],
)  # fmt: skip
def test_value(text, value):
    assert read(text) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 4), st.sampled_from(["", "$", "€", "\\$"]))
def test_python_and_the_reader_agree(units, places, currency):
    exact = Fraction(units, 10**places)
    text = f"{abs(units) // 10**places:,}" + (f".{abs(units) % 10**places:0{places}d}" if places else "")
    assert read(f"{'-' if units < 0 else ''}{currency}{text}") == exact


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("10-5", "5"), ("10 - 5", "5"), ("it is -5", "-5"), ("x=-5", "-5"), ("(3)-4", "4"), ("5 to 7.", "7"),
        ("costs $1,200.50.", "1200.50"), ("3, 4", "4"), ("12...", "12"), ("none", None), ("", None),
    ],
)  # fmt: skip
def test_last_number(text, last):
    assert numbers.last_number(text) == last


@pytest.mark.parametrize(
    "text", ["1" * 200_000, "1," * 100_000, "1 " * 100_000, "1/" * 100_000, "-" * 200_000, " " * 200_000]
)
def test_long_texts_take_no_long_time(text):
    started = time.perf_counter()
    numbers.last_number(text)
    assert time.perf_counter() - started < 5


@given(st.text(alphabet="0123456789.,/ -+$eE\u2212{}\\"))
def test_no_text_raises(text):
    found = numbers.last_number(text)
    assert found is None or numbers.same(found, found)
